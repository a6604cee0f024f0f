"""Runs a stage as a container beside Airflow: DockerOperator, and what its users miss in it.

The result document instead of the last line of the log; a retry that finds the container of a dead worker and goes on with
it instead of starting a second one; real limits, a read-only root, no capabilities; labels by which leftovers are found; and
only the variables, networks and secrets that the contract declares.
"""

import contextlib
import hashlib
import os
import re
import time
from typing import Any

from airflow.providers.docker.operators.docker import DockerOperator
from airflow.sdk import Context, ResumableJobMixin
from docker.errors import APIError, NotFound

from containers import container_of, host_config
from operators import RunLink, StageTask, find_result
from stages import STAGES

# Stages promise to be gone 3 s after SIGTERM; Airflow gives a task that it ends 5 s.
STOP_SECONDS = 3
# Stages that may work at the same time; stack/airflow_init.py makes the pool.
POOL = "stages"


class ContainerOperator(StageTask, ResumableJobMixin, DockerOperator):  # type: ignore[override]
    """Run a stage of the contract as a container; see StageTask."""

    template_fields = StageTask.template_fields
    external_id_key = "container_id"
    operator_extra_links = (RunLink(),)
    # The last thing that the stage said.
    _message = ""

    def __init__(self, *, stage: str, **kwargs: Any) -> None:
        """Prepare a stage; see StageTask."""
        wanted = container_of(STAGES[stage], os.environ.get("HEART_PROJECT", "heart"), os.environ.get("HEART_TAG", "dev"))
        # While a stage says nothing its log says nothing either: the engine is waited for as long as the stage may take.
        timeout = int(STAGES[stage].timeout.total_seconds()) + 60
        super().__init__(stage=stage, image=wanted.image, mount_tmp_dir=False, timeout=timeout, pool=POOL, **kwargs)
        self.wanted = wanted
        self._started = 0.0

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the stage, or go on with its container; see StageTask.conclude for what it returns and raises."""
        self._started = time.monotonic()
        return self.execute_resumable(context)

    def submit_job(self, context: Context) -> str:
        """Start the stage's container; return its id. One that a dead worker started is taken over."""
        image = self.cli.inspect_image(self.wanted.image)
        revision = (image["Config"].get("Labels") or {}).get("org.opencontainers.image.revision", "unknown")
        environment = self.given(image["Id"], self.wanted.environment | {"HEART_REVISION": revision})
        name = self.name_of(context)
        try:
            created = self._create(name, environment, context)
        except APIError as error:
            if error.status_code != 409:
                raise
            there = self.cli.inspect_container(name)
            if there["State"]["Running"]:
                self.log.info("going on with the container that was started before: %s", name)
                return there["Id"]
            self.cli.remove_container(name, force=True)
            created = self._create(name, environment, context)
        self.container = {"Id": created}
        for network in self.wanted.networks[1:]:
            self.cli.connect_container_to_network(created, network)
        self.cli.start(created)
        self.log.info("started container %s of image %s", name, self.wanted.image)
        return created

    def get_job_status(self, external_id: Any, context: Context) -> str:
        """Return `running`, `exited <code>`, another state of the engine, or `gone`."""
        try:
            state = self.cli.inspect_container(external_id)["State"]
        except NotFound:
            return "gone"
        return f"exited {state['ExitCode']}" if state["Status"] == "exited" else state["Status"]

    def is_job_active(self, status: str) -> bool:
        """Return whether the container still works."""
        return status == "running"

    def is_job_succeeded(self, status: str) -> bool:
        """Return whether it has ended, well or not, though nobody has read its result yet: what is read is removed."""
        return status.startswith("exited")

    def poll_until_complete(self, external_id: Any, context: Context) -> Any:
        """Log what the stage says, until it ends."""
        self._read_log(external_id)
        # On a second try the mixin takes what this returns for the result.
        return self.get_job_result(external_id, context) if context["ti"].try_number > 1 else None

    def get_job_result(self, external_id: Any, context: Context) -> dict[str, Any]:
        """Read how the stage ended, and remove its container."""
        if self.result is not None:
            return self.result
        if not self._message:
            self._read_log(external_id)  # it ended while no worker listened
        code = self.cli.wait(external_id)["StatusCode"]
        killed = self.cli.inspect_container(external_id)["State"]["OOMKilled"]
        output = self.cli.logs(external_id, stdout=True, stderr=False).decode(errors="replace").splitlines()
        message = self._message or f"{self.stage} ended with exit code {code} and said nothing"
        if killed:
            message = f"{self.stage} needed more than its {self.wanted.memory} of memory; raise `memory` in dags/stages.py"
        self.cli.remove_container(external_id, force=True, v=True)
        return self.conclude(context, code, find_result(output), message, self._started)

    def on_kill(self) -> None:
        """End the container with the task, when Airflow ends that: from the UI, or when its time is over."""
        if self.container:
            self.log.info("stopping the container")
            with contextlib.suppress(NotFound):  # it ended by itself
                self.cli.stop(self.container["Id"], timeout=STOP_SECONDS)
                self.cli.remove_container(self.container["Id"], force=True, v=True)

    def name_of(self, context: Context) -> str:
        """Return the container's name: the same for every try of a task, so that there is never a second one."""
        ti = context["ti"]
        key = f"{ti.dag_id}/{ti.run_id}/{ti.task_id}/{ti.map_index}"
        batch = re.sub("[^A-Za-z0-9_.-]", "-", f"-{self.batch}") if self.batch else ""
        return f"{self.wanted.labels['heart.project']}-{self.stage}{batch}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    def _read_log(self, container: str) -> None:
        """Log what the stage says until it ends; the last message is kept."""
        self.container = {"Id": container}
        said = b""
        for piece in self.cli.logs(container, stdout=False, stderr=True, stream=True, follow=True):
            *lines, said = (said + piece).split(b"\n")
            for line in lines:
                self._message = self.take(line.decode(errors="replace")) or self._message
        if said:
            self._message = self.take(said.decode(errors="replace")) or self._message

    def _create(self, name: str, environment: dict[str, str], context: Context) -> str:
        ti = context["ti"]
        task = {"heart.dag": ti.dag_id, "heart.run": ti.run_id, "heart.task": ti.task_id, "heart.try": str(ti.try_number)}
        created = self.cli.create_container(
            image=self.wanted.image,
            name=name,
            environment=environment,
            labels=self.wanted.labels | task,
            host_config=host_config(self.wanted),
        )
        return created["Id"]
