"""What a container of `config/kubernetes.yaml` or `config/compose.yaml` would run, run as a process here.

Its command, its environment and its files are those of the manifest. What has to differ is said by the caller: secrets,
ports, and where files are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from harness.process import ServerProcess, command

CONFIG = Path(__file__).parent.parent.parent / "config"


@dataclass(frozen=True)
class Container:
    """One container, with everything that refers to something else resolved."""

    arguments: list[str]
    environment: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)
    """Contents by path."""

    @contextmanager
    def running(self, folder: Path, *options: str, **environment: str) -> Iterator[ServerProcess]:
        """Run it as `mcp-hybrid` with its files in a folder, on a free port of the loopback."""
        paths = {path: str(folder / path.lstrip("/")) for path in self.files}

        def moved(text: str) -> str:
            for path, instead in paths.items():
                text = text.replace(path, instead)
            return text

        for path, content in self.files.items():
            Path(paths[path]).parent.mkdir(parents=True, exist_ok=True)
            Path(paths[path]).write_text(moved(content), encoding="utf-8")
        arguments = [moved(argument) for argument in self.arguments]
        env = {name: moved(value) for name, value in self.environment.items()} | environment

        def argv(port: int) -> Sequence[str]:
            here = ["--host", "127.0.0.1", "--port", str(port)]
            return [*command("mcp-hybrid"), *arguments, *here, *options]

        with ServerProcess(argv, env, forked=True) as process:
            yield process


class Manifests:
    """The objects of a Kubernetes manifest."""

    def __init__(self, path: Path = CONFIG / "kubernetes.yaml") -> None:
        self.all: list[dict[str, Any]] = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))

    def get(self, kind: str, name: str = "mcp-hybrid") -> dict[str, Any]:
        (found,) = [each for each in self.all if (each["kind"], each["metadata"]["name"]) == (kind, name)]
        return found

    def pod(self, kind: str, name: str = "mcp-hybrid") -> dict[str, Any]:
        """Give the specification of a workload's pods."""
        found: dict[str, Any] = self.get(kind, name)["spec"]["template"]["spec"]
        return found

    def secrets(self) -> dict[str, str]:
        found: dict[str, str] = self.get("Secret")["stringData"]
        return found

    def container(self, kind: str, name: str, secrets: Mapping[str, str]) -> Container:
        """Give the one container of a workload's pods, as it is with these secrets."""
        pod = self.pod(kind, name)
        (spec,) = pod["containers"]
        environment = {
            each["name"]: secrets[each["valueFrom"]["secretKeyRef"]["key"]] if "valueFrom" in each else each["value"]
            for each in spec.get("env", [])
        }
        # $(NAME) in an argument is the variable of that name.
        arguments = [re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], each) for each in spec["args"]]
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        files = {}
        for mount in spec["volumeMounts"]:
            for path, content in self._contents(volumes.get(mount["name"], {}), secrets).items():
                files[f"{mount['mountPath']}/{path}"] = content
        return Container(arguments, environment, files)

    def _contents(self, volume: Mapping[str, Any], secrets: Mapping[str, str]) -> dict[str, str]:
        if "configMap" in volume:
            data: dict[str, str] = self.get("ConfigMap", volume["configMap"]["name"])["data"]
            return data
        if "secret" in volume:
            return {item["path"]: secrets[item["key"]] for item in volume["secret"]["items"]}
        return {}
