"""Backends against torch, the cache of converted networks, and the choice between them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medseg.core.errors import MissingPackageError, ResourceError, SettingsError
from medseg.core.plan import Plan
from medseg.inference import backends, choice, openvino_backend
from medseg.inference.backends import CompiledBackend, TorchBackend
from medseg.inference.choice import Backends, forwards_of
from medseg.inference.tile import agreement, sample_tile
from medseg.networks.build import build_network
from tests.models import small_plan

CPU = torch.device("cpu")
needs_openvino = pytest.mark.skipif(
    openvino_backend.openvino_version() is None, reason="openvino is not installed"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test."""
    monkeypatch.setenv("MEDSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def plan_of(dims: int) -> Plan:
    """Unequal sides and, in three dimensions, unequal strides."""
    if dims == 2:
        return small_plan(dims=2, channels=2)
    return small_plan(
        channels=2,
        **{
            "patch_size": [24, 16, 10],
            "network.features": [4, 6, 8],
            "network.strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2]],
            "network.kernels": [[3, 3, 1], [3, 3, 3], [3, 3, 3]],
        },
    )


def tiles(plan: Plan, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, len(plan.channels), *plan.patch_size, generator=generator)


def make(name: str, plan: Plan, *, members: int = 1, identity: str = "model") -> Backends:
    networks = [build_network(plan.network, seed=seed) for seed in range(members)]
    return Backends(name, networks, plan, CPU, identity=identity)


@needs_openvino
@pytest.mark.parametrize("dims", [2, 3])
def test_openvino_agrees_with_torch_for_any_batch(dims: int) -> None:
    plan = plan_of(dims)
    made = make("openvino", plan, members=2)
    fast = made.for_work(1)
    assert [backend.name for backend in fast] == ["openvino", "openvino"]
    for member, backend in enumerate(fast):
        network = build_network(plan.network, seed=member).eval()
        for count in (1, 3, 2):
            x = tiles(plan, count)
            with torch.inference_mode():
                reference = network(x)
            logits = backend(x)
            assert logits.dtype == torch.float32
            torch.testing.assert_close(logits, reference, atol=1e-4, rtol=1e-4)
            # Views of mirrored and cut tiles are not contiguous.
            torch.testing.assert_close(backend(x.flip([2]).flip([2])), logits)


@needs_openvino
def test_openvino_from_several_threads() -> None:
    plan = plan_of(3)
    (backend,) = make("openvino", plan).for_work(1)
    batches = [tiles(plan, 2, seed) for seed in range(6)]
    alone = [backend(batch) for batch in batches]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(backend, batches))
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)


@needs_openvino
def test_a_conversion_is_kept_and_used_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(3)
    x = tiles(plan, 1)
    first = make("openvino", plan).for_work(1)[0](x)
    (folder,) = (cache / "openvino").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [
        "checked.json", "model.bin", "model.xml",
    ]  # fmt: skip

    def never(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(openvino_backend, "_convert", never)
    assert torch.equal(make("openvino", plan).for_work(1)[0](x), first)
    # Another package, another patch, other weights under the same name: another key.
    seeded = Backends(
        "openvino", [build_network(plan.network, seed=9)], plan, CPU, identity="model"
    )
    for other in (make("openvino", plan, identity="b"), make("openvino", plan_of(2)), seeded):
        with pytest.raises(AssertionError, match="converted again"):
            other.for_work(1)


@needs_openvino
def test_what_is_not_used_any_more_is_removed(cache: Path) -> None:
    make("openvino", plan_of(2), identity="old").for_work(1)
    (old,) = (cache / "openvino").iterdir()
    leftover = cache / "openvino" / ".medseg-killed"
    leftover.mkdir()
    for path, days in ((old, 80), (leftover, 2)):
        os.utime(path, (time.time() - days * 86400,) * 2)
    make("openvino", plan_of(2), identity="new").for_work(1)
    assert old.is_dir()
    assert not leftover.exists()
    os.utime(old, (time.time() - 100 * 86400,) * 2)
    make("openvino", plan_of(2), identity="old").for_work(1)  # used again
    make("openvino", plan_of(2), identity="newer").for_work(1)
    assert old.is_dir()
    os.utime(old, (time.time() - 100 * 86400,) * 2)
    make("openvino", plan_of(2), identity="newest").for_work(1)
    assert not old.exists()


@needs_openvino
@pytest.mark.parametrize("damage", ["model.bin", "model.xml", "checked.json", "missing"])
def test_a_damaged_conversion_is_made_anew(
    damage: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(2)
    x = tiles(plan, 1)
    first = make("openvino", plan).for_work(1)[0](x)
    (folder,) = (cache / "openvino").iterdir()
    if damage == "missing":
        (folder / "model.bin").unlink()
    else:
        data = bytearray((folder / damage).read_bytes())
        data[len(data) // 2] ^= 0x40
        data[-9:] = b""
        (folder / damage).write_bytes(data)
    (backend,) = make("openvino", plan).for_work(1)
    assert "damaged" in caplog.text
    assert torch.equal(backend(x), first)
    facts = json.loads((folder / "checked.json").read_text(encoding="utf-8"))
    assert facts["equal"] >= 0.999


@needs_openvino
def test_two_that_convert_at_once_do_not_disturb_each_other(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, x = plan_of(2), tiles(plan_of(2), 1)
    # Networks are seeded one after another: the state of chance belongs to all threads.
    both = [make("openvino", plan) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        # Neither finds what the other wrote, as two processes that start together.
        monkeypatch.setattr(openvino_backend, "_from_cache", lambda *_, **__: None)
        first, second = pool.map(lambda made: made.for_work(1)[0](x), both)
    assert torch.equal(first, second)
    monkeypatch.undo()
    monkeypatch.setenv("MEDSEG_CACHE", str(cache))
    (folder,) = (cache / "openvino").iterdir()
    ov = openvino_backend.import_openvino()
    assert openvino_backend._from_cache(ov, folder, one_by_one=False) is not None


@needs_openvino
def test_no_room_is_told_as_such() -> None:
    (backend,) = make("openvino", plan_of(2)).for_work(1)

    class Full:
        def infer(self, *_: object, **__: object) -> None:
            raise RuntimeError("std::bad_alloc")

    backend._request = Full()  # type: ignore[attr-defined]
    with pytest.raises(MemoryError, match="no room"):
        backend(tiles(plan_of(2), 1))


@needs_openvino
def test_without_a_cache_folder_it_runs_all_the_same(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("a file stands in its place", encoding="utf-8")
    assert make("openvino", plan_of(2)).for_work(1)[0].name == "openvino"
    monkeypatch.setattr(openvino_backend, "cache_folder", lambda: None)
    monkeypatch.setattr(choice, "cache_folder", lambda: None)
    assert make("openvino", plan_of(2)).for_work(1)[0].name == "openvino"


@needs_openvino
def test_logits_that_differ_are_not_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    true = openvino_backend._compile

    class Wrong:
        def __init__(self, request: object) -> None:
            self.request = request

        def infer(self, *given: object, **options: object) -> list[object]:
            return [self.request.infer(*given, **options)[0] * 1.01 + 0.1]  # type: ignore[attr-defined]

    class Compiled:
        def __init__(self, model: object) -> None:
            self.model = model

        def create_infer_request(self) -> Wrong:
            return Wrong(self.model.create_infer_request())  # type: ignore[attr-defined]

    monkeypatch.setattr(openvino_backend, "_compile", lambda *given: Compiled(true(*given)))
    made = make("openvino", plan_of(2))
    assert [backend.name for backend in made.for_work(1)] == ["torch"]
    assert "torch is used instead" in caplog.text
    assert not (cache / "openvino").exists()


class Unconvertible(nn.Module):
    """A network that cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise NotImplementedError("an operation of its own")
        return torch.cat([x] * 3, dim=1)


@needs_openvino
def test_a_network_that_cannot_be_converted_stays_with_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = Backends("openvino", [Unconvertible()], plan_of(2), CPU, identity="odd")
    assert made.for_work(1)[0].name == "torch"
    assert "torch is used instead" in caplog.text
    monkeypatch.setattr(choice, "PAYS_FROM_S", 0.0)
    automatic = Backends("auto", [Unconvertible()], plan_of(2), CPU, identity="odd")
    assert automatic.for_work(100)[0].name == "torch"


@pytest.mark.parametrize("quick", ["torch", "openvino"])
@needs_openvino
def test_auto_measures_once_and_remembers(
    quick: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([1.0, 0.6, 0.5] if quick == "openvino" else [0.5, 0.49, 0.49])
    monkeypatch.setattr(choice, "_timed", lambda work: next(seconds))
    plan = plan_of(3)
    made = make("auto", plan, members=2)
    assert [b.name for b in made.for_work(100)] == ["torch", "torch"], "a few ms pay for nothing"
    assert not cache.exists()
    monkeypatch.setattr(choice, "PAYS_FROM_S", 0.0)
    made.reference[0].seconds = 1e9  # what this machine took must not decide
    assert [b.name for b in made.for_work(100)] == [quick, quick]
    (record,) = (cache / "choices").iterdir()
    facts = json.loads(record.read_text(encoding="utf-8"))
    assert facts["backend"] == quick
    assert set(facts["seconds_per_tile"]) == {"torch", "openvino"}
    # Another process: nothing is measured (the times above are used up), at the least work.
    assert [b.name for b in make("auto", plan, members=2).for_work(1)] == [quick, quick]
    # A record that cannot be read is as none.
    record.write_text("{", encoding="utf-8")
    monkeypatch.setattr(choice, "PAYS_FROM_S", 1e9)
    assert make("auto", plan, members=2).for_work(1)[0].name == "torch"


def test_auto_converts_when_earlier_scans_have_used_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = make("auto", plan_of(2))
    monkeypatch.setattr(made, "_measured", lambda: ["measured"])
    (reference,) = made.reference
    assert isinstance(reference, TorchBackend)
    assert made.for_work(1) == [reference], "too little is known"
    reference.seconds, reference.tiles = 9.0, 9
    assert made.for_work(0) == [reference]
    if openvino_backend.openvino_version() is not None:
        assert made.for_work(1) == ["measured"]


def test_work_is_counted_by_hand() -> None:
    plan = small_plan(**{"inference.mirror_axes": (0, 2)})
    # Patch (16, 12, 8), step 0.5: 3 x 2 x 1 windows, 4 views of each.
    assert forwards_of(plan, (32, 18, 5)) == 3 * 2 * 1 * 4


def test_backends_that_cannot_be_had_are_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match=r"--backend.*openvino"):
        make("tensorrt", plan_of(2))
    if openvino_backend.openvino_version() is not None:
        with pytest.raises(ResourceError, match="--device cpu"):
            Backends("openvino", [], plan_of(2), torch.device("cuda"), identity="")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPackageError, match=r"medseg\[openvino\]"):
        make("openvino", plan_of(2))

    def broken(*_: object, **__: object) -> None:
        raise ImportError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr(openvino_backend, "require", broken)
    with pytest.raises(MissingPackageError, match="libtbb"):
        make("openvino", plan_of(2))
    monkeypatch.setattr(choice, "PAYS_FROM_S", 0.0)
    if openvino_backend.openvino_version() is not None:
        assert make("auto", plan_of(2)).for_work(100)[0].name == "torch"
        assert not (cache / "choices").exists(), "an installation can be mended"
    monkeypatch.setattr(choice, "openvino_version", lambda: None)
    monkeypatch.setattr(choice, "PAYS_FROM_S", 0.0)
    assert make("auto", plan_of(2)).for_work(100)[0].name == "torch"


@needs_openvino
def test_nothing_is_sent_to_a_network(cache: Path, repository: Path) -> None:
    plan = plan_of(2)
    (cache.parent / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    code = """
import sys
from pathlib import Path
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith("socket.") else None)
import torch
from medseg.core.plan import Plan
from medseg.inference.choice import Backends
from medseg.networks.build import build_network
plan = Plan.from_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
made = Backends("openvino", [build_network(plan.network)], plan, torch.device("cpu"), identity="a")
(backend,) = made.for_work(1)
backend(torch.zeros(1, plan.network.in_channels, *plan.patch_size))
import openvino_telemetry
assert not hasattr(openvino_telemetry, "__file__")
print(backend.name, seen)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(cache.parent / "plan.json")], cwd=repository,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "openvino []", done.stdout + done.stderr
    assert (cache / "openvino").is_dir()


def test_a_compiler_that_fails_leaves_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(network: nn.Module, **_: object) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            raise RuntimeError("no compiler\nat all")

        return run

    monkeypatch.setattr(backends.torch, "compile", failing)
    plan = plan_of(3)
    network = build_network(plan.network, seed=0)
    backend, x = CompiledBackend(network, CPU), tiles(plan, 2)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(backend(x), TorchBackend(network, CPU)(x))
    assert caplog.text.count("torch.compile failed") == 1
    assert backend.name == "torch"


def test_compiled_batches_are_filled_up_and_memory_errors_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []

    def counting(network: nn.Module, **_: object) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            sizes.append(len(x))
            if len(x) > 4:
                raise torch.OutOfMemoryError("too large")
            result: Tensor = network(x)
            return result

        return run

    monkeypatch.setattr(backends.torch, "compile", counting)
    plan = plan_of(3)
    network = build_network(plan.network, seed=0)
    backend, x = CompiledBackend(network, CPU), tiles(plan, 8)
    with pytest.raises(torch.OutOfMemoryError):
        backend(x)
    for count in (4, 3):
        torch.testing.assert_close(backend(x[:count]), TorchBackend(network, CPU)(x[:count]))
    assert sizes == [8, 4, 4]
    assert backend.name == "compile"


def test_agreement_by_hand() -> None:
    reference = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).reshape(1, 2, 2, 1, 1)
    same = agreement(reference, reference)
    assert (same.difference, same.equal, same.close) == (0.0, 1.0, True)
    off = agreement(reference, reference + 0.5)
    assert (off.difference, off.equal, off.close) == (0.5, 1.0, False)
    assert agreement(reference, reference.flip([1])).equal == 0.0
    assert not agreement(reference, reference * float("nan")).close


def test_the_sample_tile_is_always_the_same() -> None:
    assert torch.equal(sample_tile(2, (9, 16, 1)), sample_tile(2, (9, 16, 1)))
    assert sample_tile(2, (9, 16, 1)).shape == (1, 2, 9, 16, 1)


@pytest.fixture
def compiled_on_gpu() -> Iterator[CompiledBackend]:
    yield CompiledBackend(build_network(plan_of(3).network, seed=0), torch.device("cuda"))
    torch._dynamo.reset()


@pytest.mark.gpu
def test_compiled_on_a_gpu_agrees_with_torch(compiled_on_gpu: CompiledBackend) -> None:
    plan = plan_of(3)
    reference = TorchBackend(build_network(plan.network, seed=0), CPU)
    first = None
    for count in (4, 4, 4, 2):
        x = tiles(plan, count)
        logits = compiled_on_gpu(x.to("cuda"))
        first = logits if first is None else first
        assert agreement(reference(x), logits.cpu()).equal > 0.99
    assert compiled_on_gpu.name == "compile"
    assert first is not None
    assert agreement(reference(tiles(plan, 4)), first.cpu()).equal > 0.99, "written over"
