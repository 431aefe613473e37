"""scikit-learn's iris behind HTTP: a FastAPI application in front, a feature scaler and a classifier behind it, each a deployment of its own.

    shoal serve run examples.serve_iris:app
    curl 'http://127.0.0.1:8000/predict?sepal_length=5.1&sepal_width=3.5&petal_length=1.4&petal_width=0.2'
    curl -X POST http://127.0.0.1:8000/batch -H 'content-type: application/json' -d '[[6.7, 3.0, 5.2, 2.3], [5.1, 3.5, 1.4, 0.2]]'

Or from Python: `python examples/serve_iris.py`. Requests that come close together are classified in one call (`serve.batch`).
"""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import numpy as np
import shoal
from fastapi import FastAPI, HTTPException
from shoal import serve
from shoal.serve import DeploymentHandle

api = FastAPI(title="Iris")
FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Scaler:
    """Brings each feature to mean 0 and deviation 1."""

    def __init__(self) -> None:
        from sklearn.datasets import load_iris

        data = load_iris().data
        self.mean, self.deviation = data.mean(axis=0), data.std(axis=0)

    async def __call__(self, features: list[float]) -> np.ndarray:
        scaled: np.ndarray = (np.asarray(features) - self.mean) / self.deviation
        return scaled


@serve.deployment(num_replicas=2, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0.1})
class Classifier:
    """Names the species, with its probability."""

    def __init__(self) -> None:
        from sklearn.datasets import load_iris
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        iris = load_iris()
        self.names = [str(name) for name in iris.target_names]
        self.model = LogisticRegression(max_iter=500).fit(StandardScaler().fit_transform(iris.data), iris.target)

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.002)
    async def __call__(self, rows: list[np.ndarray]) -> list[dict[str, Any]]:
        probabilities = self.model.predict_proba(np.stack(rows))
        return [{"species": self.names[int(p.argmax())], "probability": round(float(p.max()), 4)} for p in probabilities]


@serve.deployment(max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.1})
@serve.ingress(api)
class Iris:
    def __init__(self, scaler: DeploymentHandle, classifier: DeploymentHandle) -> None:
        self.scaler, self.classifier = scaler, classifier

    @api.get("/predict")
    async def predict(self, sepal_length: float, sepal_width: float, petal_length: float, petal_width: float) -> dict[str, Any]:
        return await self.one([sepal_length, sepal_width, petal_length, petal_width])

    @api.post("/batch")
    async def batch(self, flowers: list[list[float]]) -> list[dict[str, Any]]:
        if any(len(flower) != len(FEATURES) for flower in flowers):
            raise HTTPException(422, f"each flower has {len(FEATURES)} numbers: {', '.join(FEATURES)}")
        # All at once: the responses are awaited only after the last one is sent.
        answers = [self.classifier.remote(self.scaler.remote(flower)) for flower in flowers]
        return [await answer for answer in answers]

    async def one(self, features: list[float]) -> dict[str, Any]:
        answer: dict[str, Any] = await self.classifier.remote(self.scaler.remote(features))
        return answer


app = Iris.bind(Scaler.bind(), Classifier.bind())


def main() -> None:
    with shoal.init():
        serve.start(http_options={"port": 0})
        serve.run(app)
        address = serve.http_address()
        for flower in ((5.1, 3.5, 1.4, 0.2), (6.7, 3.0, 5.2, 2.3)):
            query = "&".join(f"{name}={value}" for name, value in zip(FEATURES, flower, strict=True))
            with urllib.request.urlopen(f"{address}/predict?{query}") as answer:
                print(flower, json.load(answer))
        serve.shutdown()


if __name__ == "__main__":
    main()
