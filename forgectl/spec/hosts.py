"""The hosts of a spec: listed, or named by a file or a scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from forgectl.names import NAME
from forgectl.spec.problems import show
from forgectl.spec.read import Null
from forgectl.spec.scalars import (
    NAME_RULE,
    Bare,
    Bool,
    EnvText,
    Folder,
    Interpreter,
    Name,
    Slots,
    SomeText,
    bare,
    boolean,
    gpus,
    or_variable,
    wrong,
)

Gpus = Annotated[
    Literal["auto", "none"] | int | tuple[int, ...],
    BeforeValidator(gpus),
    or_variable(
        {"enum": ["auto", "none"]},
        {"type": "integer", "minimum": 0},
        {"type": "array", "items": {"type": "integer", "minimum": 0}},
    ),
]
Env = dict[str, EnvText]


class Model(BaseModel):
    """Frozen, without unknown keys; an empty key counts as absent."""

    model_config = ConfigDict(frozen=True, extra="forbid", title=None)

    @model_validator(mode="before")
    @classmethod
    def _without_empty_keys(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: v for k, v in value.items() if not isinstance(v, Null)}
        return value


class Host(Model):
    """One host of the run: this machine, or one that is reached by ssh."""

    name: Name = Field(description="The host's name in meshes, status and logs")
    local: Bool = Field(default=False, description="This machine; several such hosts rehearse many hosts on one")
    ssh: Bare | None = Field(default=None, description="The ssh destination; default: the name")
    address: Bare | None = Field(default=None, description="Address for other hosts; default: what ssh resolves it to")
    python: Interpreter | None = Field(
        default=None, description="Interpreter of agent and ranks; default: forgectl's own, by ssh python3"
    )
    root: Folder | None = Field(
        default=None,
        description="forgectl's folder on an ssh host; default: /var/tmp/forgectl-UID, "
        "or ~/.cache/forgectl if another user has made that",
    )
    gpus: Gpus = Field(default="auto", description="auto, none, a number of GPUs, or the indices of those to use")
    slots: Slots | None = Field(
        default=None, description="Limit for its ranks without GPUs, and for its GPUs in use; default: no limit"
    )
    env: Env = Field(default_factory=dict, description="Environment of every rank on this host")

    @model_validator(mode="before")
    @classmethod
    def _long_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": "local", "local": True} if value == "local" else by_ssh(value)
        if not isinstance(value, dict) or (value.get("ssh") and "local" in value):
            return value
        value = {k: v for k, v in value.items() if not isinstance(v, Null)}
        if value.get("name") == "local" and "ssh" not in value:
            value.setdefault("local", True)
        if _is_true(value.get("local")):
            value.setdefault("name", "local")
        elif "name" in value:
            value.setdefault("ssh", value["name"])
        elif isinstance(value.get("ssh"), str):
            value["name"] = by_ssh(value["ssh"])["name"]
        return value


def _is_true(value: Any) -> bool:
    try:
        return boolean(value)
    except ValueError:
        return False


def by_ssh(destination: str) -> dict[str, Any]:
    """The long form of a host that is given by its ssh destination; raises PydanticCustomError."""
    if not destination.strip():
        raise wrong("expected the name of a host, or a map with its name, got nothing")
    bare(destination)
    for name in (destination, destination.rpartition("@")[2]):
        if NAME.fullmatch(name):
            return {"name": name, "ssh": destination}
    message = f"{show(destination)} gives no name for the host ({NAME_RULE})"
    raise wrong(f"{message}; write {{name: …, ssh: {show(destination)}}}")


class HostSource(Model):
    """A source outside the spec that names the hosts, and settings for each of them."""

    file: SomeText | None = Field(
        default=None, description="A hostfile as DeepSpeed and MPI use it: one host per line, NAME slots=N"
    )
    slurm: Bool = Field(default=False, description="The hosts of the Slurm job that forgectl is started in")
    python: Interpreter | None = Field(default=None, description="As for a host, for each of them")
    root: Folder | None = Field(default=None, description="As for a host, for each of them")
    gpus: Gpus | None = Field(default=None, description="As for a host, for each of them")
    slots: Slots | None = Field(
        default=None, description="As for a host, if the file gives none; used instead of Slurm's"
    )
    env: Env = Field(default_factory=dict, description="As for a host, for each of them")


def _host_list(value: Any) -> Any:
    if isinstance(value, str):
        raise wrong(f"expected a list of hosts, got {show(value)}; write [{value}]")
    if isinstance(value, (list, tuple)) and not value:
        raise wrong("expected at least one host; leave hosts out for this machine alone")
    return value


@dataclass(frozen=True)
class OrMapped:
    """Marks a list that may also be written as a map; that map is read before the rest of the spec."""

    model: type[Model]


LOCAL = Host(name="local", local=True)
DRIVERS_HOST = Host(name="local", local=True, gpus="none", slots=0)
"""This machine, for the driver of a run without a local host."""
Hosts = Annotated[tuple[Host, ...], BeforeValidator(_host_list), OrMapped(HostSource)]
