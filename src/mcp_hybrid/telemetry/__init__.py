"""What a running server says of itself.

logs       structured log lines
metrics    figures for Prometheus; `directory` is where worker processes add them up, `backplane` what is timed
tracing    OpenTelemetry spans
"""
