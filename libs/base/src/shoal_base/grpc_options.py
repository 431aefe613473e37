"""Options that every channel and server of ours has. Imports no gRPC."""

from __future__ import annotations

# gRPC sizes a connection's window by pings, two for each message after a quiet moment, and each of them wakes threads at both ends for a second: half of what
# an idle cluster did. A window of fixed size needs none, and is large enough for any way that messages of ours take.
WINDOW_BYTES = 4 << 20
QUIET: list[tuple[str, int]] = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", WINDOW_BYTES)]
