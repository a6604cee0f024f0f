"""serve: the champion behind MLflow's own scoring server, on port 8080; the next champion takes over without a restart.

POST /invocations takes MLflow's inputs, as in {"dataframe_records": [{"age": 54, "sex": 1, "cp": 4}]}: a finding that is not
known is null or left out. The answer has both probabilities a person, that of disease second; the header `x-model-version`
says whose. Input that the model can't take is answered with 400 and the name of the field.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import mlflow
import uvicorn
from mlflow.pyfunc import scoring_server

from services import MODEL_NAME, load_model, mlflow_client, registered_version
from stage import StageError

PORT = 8080
POLL_SECONDS = 5.0
Message = MutableMapping[str, Any]
log = logging.getLogger("serve")


class Readable:
    """A model that says of what it can't take which field is wrong, where MLflow would only say that something is."""

    def __init__(self, model: Any) -> None:
        """Stand for a model."""
        self._model = model
        self.metadata = model.metadata

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        """Return the probabilities of both classes. Raises MlflowException that the server answers with 400."""
        try:
            return self._model.predict(data, params=params)
        except ValueError as error:
            raise mlflow.MlflowException.invalid_parameter_value(str(error)) from error


class Champion:
    """The ASGI application: hands each request to the scoring server of the version that is champion now."""

    def __init__(self) -> None:
        """Serve nothing until `follow` has found a champion."""
        # Version and application change together.
        self.current: tuple[str, Any] | None = None

    async def __call__(self, scope: Message, receive: Callable[..., Any], send: Callable[..., Awaitable[None]]) -> None:
        """Answer a request; without a champion with 503."""
        if scope["type"] != "http":
            return
        current = self.current
        if current is None and scope["path"] == "/health":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"waiting for a champion"})
            return
        if current is None:
            headers = [(b"content-type", b"application/json"), (b"retry-after", b"10")]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"message": "there is no champion yet; run the pipeline"}'})
            return

        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-model-version", version.encode())]
            await send(message)

        version, application = current
        await application(scope, receive, send_with_version)

    def look(self) -> None:
        """Take over the version that the alias names, where it is another one."""
        with mlflow_client() as client:
            champion = registered_version(client, "champion")
            if champion is None or (self.current and champion.version == self.current[0]):
                return
            load_model(champion.version)  # refuses what could run code
            model = mlflow.pyfunc.load_model(f"models:/{MODEL_NAME}/{champion.version}")
        self.current = (champion.version, scoring_server.init(Readable(model)))
        log.info("serving version %s", champion.version)

    async def follow(self) -> None:
        """Look again and again; what can't be reached or taken leaves the present version in its place."""
        while True:
            try:
                await asyncio.to_thread(self.look)
            except StageError as error:
                log.warning("%s", error)
            except Exception:
                log.exception("the champion can't be read; the present version goes on")
            await asyncio.sleep(POLL_SECONDS)


async def serve() -> None:
    """Serve until the process is asked to end."""
    champion = Champion()
    server = uvicorn.Server(uvicorn.Config(champion, host="0.0.0.0", port=PORT, log_level="warning", lifespan="off"))  # noqa: S104
    following = asyncio.create_task(champion.follow())
    await server.serve()
    following.cancel()


if __name__ == "__main__":
    os.environ.setdefault("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "60")
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(serve())
