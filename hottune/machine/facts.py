"""Machine: what hottune found out about the computer it stands on."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Gpu(_Frozen):
    """One GPU, as NVML describes it; or the virtual one."""

    index: int
    name: str
    uuid: str = ""
    vram_total_mib: float
    vram_free_mib: float = Field(description="free when probed")
    driver: str = ""
    pcie: str = Field(default="", description="link now, for example 'gen5 x16'")
    pcie_max: str = Field(default="", description="best link of this card in this machine")
    power_limit_w: float | None = Field(default=None, description="enforced by the driver")
    compute_capability: str = Field(default="", description="for example '9.0'")
    virtual: bool = Field(default=False, description="hottune's virtual GPU: computes on the CPU")


class Cpu(_Frozen):
    """The processor."""

    name: str
    physical_cores: int = Field(description="cores this process may use, hyper-threads counted once")
    logical_cores: int
    features: tuple[str, ...] = Field(description="instruction sets that matter to ggml: avx2, avx512f, ...")
    governor: str = Field(default="", description="of the clocks: performance, powersave, ...; '' = not told")
    numa_nodes: int | None = Field(
        default=None, description="memory nodes; more than one: RAM is not equally near"
    )


class Machine(_Frozen):
    """GPUs, processor, memory and system; no GPU is a normal answer."""

    system: str = Field(description="operating system and kernel, for example 'Linux 6.1.0'")
    cpu: Cpu
    ram_total_mib: float
    ram_available_mib: float
    ram_speed: str = Field(
        default="", description="modules, for example '2 x DDR5 at 5600 MT/s'; '' = only root may read it"
    )
    confinement: str = Field(
        default="",
        description="what the machine is inside of: container, WSL, virtual machine; '' = nothing seen",
    )
    gpus: tuple[Gpu, ...] = ()
    notes: tuple[str, ...] = Field(default=(), description="what could not be found out, and why")
