"""The two servers that an ASGI application is run on, as quiet as they can be made."""

from typing import Any


def on_hypercorn(app: Any, port: int) -> None:
    import trio  # noqa: PLC0415 - each environment has what it runs
    from hypercorn.config import Config  # noqa: PLC0415 - as above
    from hypercorn.trio import serve  # noqa: PLC0415 - as above

    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.accesslog = None
    config.loglevel = "WARNING"
    trio.run(serve, app, config)


def on_uvicorn(app: Any, port: int) -> None:
    import uvicorn  # noqa: PLC0415 - as above

    uvicorn.run(
        app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning"
    )


STACKS = {"hypercorn": on_hypercorn, "uvicorn": on_uvicorn}
