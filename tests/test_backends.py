"""The engines against each other: the sharded one runs here on the CPU over gloo, where it must do what the CPU engine does."""

from __future__ import annotations

import math
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from backends.cpu import CpuBackend, CpuEngine, bf16_instructions
from backends.cuda import CudaBackend
from backends.cuda.engine import ShardedEngine
from crystal.config import UserError
from crystal.data.loader import Batch
from crystal.engine import Engine, TrainSpec
from tests.small import in_documents, small_batches, small_spec

SPEC = small_spec()
BATCHES = small_batches(SPEC.model, 10)
IN_DOCUMENTS = in_documents(BATCHES)


def cpu(spec: TrainSpec = SPEC, dtype: str = "float32") -> CpuEngine:
    return CpuEngine(spec, dtype=dtype, threads=1)


def sharded(spec: TrainSpec = SPEC, *, micro_rows: int | None = None, dtype: torch.dtype = torch.float32) -> ShardedEngine:
    return ShardedEngine(spec, device=torch.device("cpu"), dtype=dtype, compiled=False, micro_rows=micro_rows)


@pytest.fixture(scope="module", autouse=True)
def leave_no_process_group():
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def train(engine: Engine, first: int = 0, end: int = 5, *, batches: list[Batch] = BATCHES) -> list[tuple[float, float]]:
    """(loss, gradient norm) of the steps from `first` to `end`."""
    results = [engine.step(batch) for batch in engine.feed(iter(batches[first:end]), end - first)]
    return [(float(result.loss), float(result.grad_norm)) for result in results]


def assert_same(one: Engine, other: Engine, *, tolerance: float, but_for: str = "nothing") -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if name.endswith(but_for):
            continue
        assert tensor.device.type == "cpu" and tensor.dtype == torch.float32 and type(tensor) is torch.Tensor
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="module")
def undisturbed() -> tuple[CpuEngine, list[tuple[float, float]]]:
    engine = cpu()
    return engine, train(engine, end=10)


def test_the_engine_learns_and_starts_at_rate_0(undisturbed):
    engine, results = undisturbed
    losses = [loss for loss, _ in results]
    assert losses[-1] < losses[0] - 0.3
    assert engine.step_count == 10
    fresh = cpu()
    before = fresh.state_dict()
    result = fresh.step(next(fresh.feed(iter(BATCHES), 1)))
    assert result.lr == 0.0 and all(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items())


def test_the_loss_and_the_clipped_update_by_hand():
    """Loss: sum over masked-in labels / (rows x seq_len), as released. Norm: of all gradients, before they are clipped."""
    engine, batch = cpu(), BATCHES[0]
    logits = engine.model(torch.from_numpy(batch.inputs_BT))
    log_p = logits.log_softmax(-1).gather(-1, torch.from_numpy(batch.labels_BT)[..., None])[..., 0]
    loss = -(log_p * torch.from_numpy(batch.mask_BT)).sum() / batch.labels_BT.size
    grads = torch.autograd.grad(loss, list(engine.model.parameters()))
    [(got_loss, got_norm)] = train(engine, end=1)
    assert got_loss == pytest.approx(loss.item(), rel=1e-5)
    norm = math.sqrt(sum(grad.square().sum().item() for grad in grads))
    assert got_norm == pytest.approx(norm, rel=1e-4) and norm > 1, "the norm is above the clip, so clipping shows below"
    moment = engine.optimizer.state[engine.model.embed.weight]["exp_avg"]
    expected = 0.1 * grads[0] / norm
    assert (moment - expected).abs().max() < 1e-5 * expected.abs().max() + 1e-8


def test_the_sharded_engine_does_what_the_cpu_engine_does(undisturbed):
    one, other = cpu(), sharded()
    assert_same(one, other, tolerance=0)
    assert train(other) == [pytest.approx(pair, rel=1e-6) for pair in train(one)]
    assert_same(one, other, tolerance=1e-6)


@pytest.mark.parametrize("micro_rows", [1, 2])
def test_accumulated_micro_batches_are_the_whole_batch(micro_rows):
    whole, parts = sharded(), sharded(micro_rows=micro_rows)
    assert train(parts) == [pytest.approx(pair, rel=1e-5) for pair in train(whole)]
    # Softmax cancels what a key's bias adds to the dims that do not rotate: their gradient is rounding, which AdamW scales up.
    assert_same(whole, parts, tolerance=1e-5, but_for="attn.k.bias")


@pytest.mark.parametrize("micro_rows", [None, 1])
def test_attention_within_documents_in_the_sharded_engine(micro_rows):
    one, other = cpu(), sharded(micro_rows=micro_rows)
    results = train(one, batches=IN_DOCUMENTS)
    assert train(other, batches=IN_DOCUMENTS) == [pytest.approx(pair, rel=1e-5) for pair in results]
    assert_same(one, other, tolerance=1e-5, but_for="attn.k.bias")
    assert results[0] != pytest.approx(train(cpu(), end=1)[0], rel=1e-3), "the documents make a difference"


def test_micro_rows_must_divide_the_batch():
    with pytest.raises(UserError, match="backend.micro_rows=3; expected a divisor of the batch's 4 rows"):
        sharded(micro_rows=3)


ENGINES = {"cpu": cpu, "sharded": sharded}


@pytest.mark.parametrize("taker", ENGINES)
@pytest.mark.parametrize("giver", ENGINES)
def test_a_checkpoint_goes_on_in_either_engine(giver, taker, undisturbed, tmp_path):
    _, expected = undisturbed
    first, second = ENGINES[giver](), ENGINES[taker]()
    train(first)
    first.save(tmp_path)
    train(second, end=2)  # what it was before must not matter
    second.load(tmp_path, optimizer=True)
    assert second.step_count == 5
    assert_same(first, second, tolerance=0)
    same_engine = giver == taker
    got = train(second, 5, 10)
    if same_engine:
        assert got == train(first, 5, 10)
        assert_same(first, second, tolerance=0)
    assert got == [pytest.approx(pair, rel=1e-4) for pair in expected[5:]]


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_weights_alone(engine, tmp_path):
    """The start of a stage: another's weights, one's own fresh optimizer at step 0."""
    first, second = engine(), engine()
    train(first)
    first.save(tmp_path)
    second.load(tmp_path, optimizer=False)
    assert_same(first, second, tolerance=0)
    assert second.step_count == 0 and not second.optimizer.state


def test_a_state_dict_is_a_copy():
    for engine in (cpu(), sharded()):
        before = engine.state_dict()
        kept = {name: tensor.clone() for name, tensor in before.items()}
        train(engine, end=3)
        assert all(torch.equal(before[name], kept[name]) for name in kept)
        assert not torch.equal(engine.state_dict()["embed.weight"], kept["embed.weight"])


@pytest.mark.parametrize("batches", [BATCHES, IN_DOCUMENTS], ids=["full", "document"])
@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_evaluation_is_the_training_loss_and_changes_nothing(engine, batches, tmp_path):
    trained = engine()
    train(trained)
    before = trained.state_dict()
    loss, labels = trained.evaluate(iter(batches[5:7]))
    assert labels == sum(batch.mask_BT.sum() for batch in BATCHES[5:7])
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items()) and trained.step_count == 5
    still = engine(small_spec(lr=0.0))  # so both training steps see the same weights
    trained.save(tmp_path)
    still.load(tmp_path, optimizer=False)
    summed = sum(loss for loss, _ in train(still, 5, 7, batches=batches)) * BATCHES[0].labels_BT.size
    assert loss == pytest.approx(summed, rel=1e-6)


def test_bf16_is_close_to_float32(undisturbed):
    if not bf16_instructions():
        with pytest.raises(UserError, match="backend.dtype=bfloat16 .*; expected float32 .*; give backend.dtype=float32"):
            CpuBackend(dtype="bfloat16")
        return
    assert CpuBackend(dtype="bfloat16").build(SPEC, before={}).facts()["dtype"] == "bfloat16"
    engine, (_, expected) = cpu(dtype="bfloat16"), undisturbed
    got = train(engine, end=10)
    assert [loss for loss, _ in got] == pytest.approx([loss for loss, _ in expected], rel=2e-2)
    assert got != expected, "bfloat16 was not used"
    assert all(p.dtype == torch.float32 for p in engine.model.parameters())


def test_bf16_in_the_sharded_engine(undisturbed):
    engine, (_, expected) = sharded(dtype=torch.bfloat16), undisturbed
    got = train(engine, end=10)
    assert [loss for loss, _ in got] == pytest.approx([loss for loss, _ in expected], rel=2e-2)
    assert got != expected, "bfloat16 was not used"
    assert {p.dtype for p in engine.model.parameters()} == {torch.float32}, "the master weights"
    assert {tensor.dtype for tensor in engine.state_dict().values()} == {torch.float32}


def test_bf16_is_refused_where_it_would_be_emulated():
    with mock.patch("backends.cpu.bf16_instructions", return_value=""):
        with pytest.raises(UserError, match="backend.dtype=bfloat16 on a processor without"):
            CpuBackend(dtype="bfloat16")
        assert CpuBackend(threads=1).build(SPEC, before={}).dtype == "float32"


def test_a_run_keeps_the_dtype_and_threads_it_was_started_with():
    before = {"backend": "cpu", "dtype": "float32", "threads": 1}
    with mock.patch("backends.cpu.bf16_instructions", return_value="amx"):
        engine = CpuBackend().build(SPEC, before=before)
        assert (engine.dtype, engine.threads, torch.get_num_threads()) == ("float32", 1, 1)
        assert CpuBackend(threads=1).build(SPEC, before=before | {"backend": "cuda"}).dtype == "bfloat16"
    assert engine.facts() == before | {"device": engine.facts()["device"], "ranks": 1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(UserError, match="backend=cuda with .*; expected an NVIDIA GPU.*; use backend=cpu"):
        CudaBackend()


def test_the_files_hold_what_backends_exchange(tmp_path: Path):
    for engine in (cpu(), sharded()):
        train(engine, end=3)
        engine.save(tmp_path)
        weights, saved = (torch.load(tmp_path / name, weights_only=True) for name in ("weights.pt", "optimizer.pt"))
        names = [name for name, _ in engine.model.named_parameters()]
        assert sorted(weights) == sorted(saved["adamw"]) == sorted(names) and saved["step_count"] == 3
        for name, state in saved["adamw"].items():
            assert state["step"].item() == 3 and state["step"].dtype == torch.float32
            for moment in (state["exp_avg"], state["exp_avg_sq"]):
                assert type(moment) is torch.Tensor and moment.shape == weights[name].shape and moment.dtype == torch.float32
