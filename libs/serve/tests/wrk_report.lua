-- For wrk -s: what became of the requests, in one line that a program can read.
done = function(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format("REPORT requests=%d status=%d connect=%d read=%d write=%d timeout=%d\n",
      summary.requests, errors.status, errors.connect, errors.read, errors.write, errors.timeout))
end
