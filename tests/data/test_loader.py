import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from selfdistill.data import loader
from selfdistill.data.ledger import (
    Bad,
    Loaded,
    MicroBatch,
    SkipBudgetError,
    SkipLedger,
    SkipLedgers,
    joined,
    tried,
)
from selfdistill.data.loader import (
    ORPHAN_SECONDS,
    Source,
    dead_workers_explained,
    training_batches,
)
from selfdistill.data.plain import plain_examples
from selfdistill.data.shards import ShardSet
from selfdistill.errors import BadSample, DataBudgetError, SelfdistillError
from selfdistill.masking import row_keys
from selfdistill.types import Batch, Masks

SIZES = [7, 3, 12]
TOTAL = sum(SIZES)


class Numbers:
    """Samples are decimal numbers; an example is the number and what chance adds to it."""

    def decode(self, sample: Mapping[str, bytes]) -> Any:
        if sample["txt"] == b"short":
            raise BadSample("too short", "3 samples, at least 4 needed")
        if sample["txt"] == b"kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return float(sample["txt"])

    def augment(self, raw: Any, rng: np.random.Generator) -> np.ndarray:
        if raw < 0:
            raise BadSample("negative")
        return np.array([raw, rng.random()], np.float32)

    def plain(self, raw: Any) -> np.ndarray:
        return np.array([raw, 0], np.float32)

    def collate(
        self, examples: Sequence[np.ndarray], mask_keys: np.ndarray | None, keys: Sequence[str] = ()
    ) -> Batch:
        masks = None
        if mask_keys is not None:
            bits = (mask_keys[:, None] >> np.arange(8, dtype=np.uint64)) & np.uint64(1)
            masks = Masks.from_bool(bits.astype(bool))
        return Batch(torch.from_numpy(np.stack(examples)), masks=masks, keys=keys)


def shard(path: Path, samples: Sequence[tuple[str, Mapping[str, bytes]]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for key, members in samples:
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def numbers(folder: Path, replaced: Mapping[int, bytes] | None = None) -> ShardSet:
    """Shards of ``SIZES`` with the numbers 0..21, some of them replaced."""
    bounds = np.cumsum([0, *SIZES])
    values = {i: str(i).encode() for i in range(TOTAL)} | dict(replaced or {})
    paths = [
        shard(folder / f"{a}.tar", [(f"k{i}", {"txt": values[i]}) for i in range(a, b)])
        for a, b in pairwise(bounds)
    ]
    return ShardSet(paths, ["txt"])


def streams(sources: Mapping[str, Source], **changes: Any) -> Iterator[list[MicroBatch]]:
    settings = {"seed": 5, "accumulate": 1, "rank": 0, "world_size": 1}
    settings |= {"start_step": 0, "steps": 13, "workers": 0}  # more than two epochs
    return training_batches(sources, **(settings | changes))


def stream(shards: ShardSet, batch_size: int = 4, **changes: Any) -> Iterator[list[Loaded]]:
    """The stream of one modality."""
    for step in streams({"one": Source(shards, Numbers(), batch_size)}, **changes):
        yield [loaded for (loaded,) in (micro_batch.values() for micro_batch in step)]


def content(loaded: Loaded) -> tuple[Any, ...]:
    masks = loaded.batch.masks
    assert masks is not None
    return (
        loaded.batch.inputs.tolist(),
        masks.masked.tolist(),
        list(loaded.batch.keys),
        loaded.bad,
        loaded.seen,
    )


def contents(steps: Iterator[list[Loaded]]) -> list[list[tuple[Any, ...]]]:
    return [[content(loaded) for loaded in step] for step in steps]


def keys(steps: Iterator[list[Loaded]]) -> list[str]:
    return [key for step in steps for loaded in step for key in loaded.batch.keys]


def test_pinning_reaches_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through what the DataLoader is handed."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor + 1)
    masks = Masks(*torch.zeros(5, 1, 1))
    before = Loaded(Batch(torch.zeros(2), torch.zeros(2), masks, keys=("a", "b")), [], 2)
    [pinned] = pin_memory([{"one": before, "two": before}])
    for loaded in (pinned["one"], pinned["two"]):
        batch = loaded.batch
        assert batch.masks is not None
        tensors = [getattr(batch.masks, part.name) for part in fields(batch.masks)]
        for tensor in (batch.inputs, batch.lengths, *tensors):
            assert (tensor == 1).all()
        assert (batch.teacher_inputs, batch.keys) == (None, ("a", "b"))


def test_every_sample_once_per_epoch(tmp_path: Path) -> None:
    seen = keys(stream(numbers(tmp_path), batch_size=TOTAL, steps=3))
    epochs = [seen[i : i + TOTAL] for i in range(0, 3 * TOTAL, TOTAL)]
    assert all(sorted(epoch) == sorted(f"k{i}" for i in range(TOTAL)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_chance_comes_from_seed_and_position(tmp_path: Path) -> None:
    shards = numbers(tmp_path)
    np.random.seed(1)  # noqa: NPY002 - global state must not matter
    first = contents(stream(shards))
    np.random.seed(2)  # noqa: NPY002
    assert contents(stream(shards)) == first
    assert contents(stream(shards, seed=6)) != first
    masked = np.array([row for [step] in first for row in step[1]])
    bits = row_keys(5, np.arange(52))[:, None] >> np.arange(8, dtype=np.uint64)
    assert np.array_equal(masked, bits & np.uint64(1))
    noise = [row[1] for [step] in first for row in step[0]]
    assert len(set(noise)) == len(noise)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2, 5])  # 5: more workers than shards
def test_workers_do_not_change_the_stream(tmp_path: Path, workers: int) -> None:
    shards = numbers(tmp_path, {2: b"short", 9: b"junk"})
    assert contents(stream(shards, workers=workers)) == contents(stream(shards))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 5, 6, 12, 13])  # an epoch ends within step 5
def test_resumed_stream_is_the_tail(tmp_path: Path, start: int, workers: int) -> None:
    shards = numbers(tmp_path, {2: b"short", 9: b"junk"})
    whole = contents(stream(shards))
    assert contents(stream(shards, start_step=start, workers=workers)) == whole[start:]


def test_global_random_state_is_left_alone(tmp_path: Path) -> None:
    """Dropout draws from it, and a resumed run must go on as if it had not stopped."""
    before = torch.get_rng_state()
    list(stream(numbers(tmp_path), workers=1, steps=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_and_accumulation_see_the_same_rows(tmp_path: Path) -> None:
    shards = numbers(tmp_path, {2: b"short"})
    alone = contents(stream(shards, batch_size=8, accumulate=4))
    pairs = [
        contents(stream(shards, batch_size=8, accumulate=2, rank=r, world_size=2)) for r in (0, 1)
    ]
    assert [first + second for first, second in zip(*pairs, strict=True)] == alone
    whole = contents(stream(shards, batch_size=8))
    assert [list(chain(*(part[2] for part in step))) for step in alone] == [s[0][2] for s in whole]


@pytest.mark.parametrize("workers", [0, 2])
def test_modalities_do_not_change_each_other(tmp_path: Path, workers: int) -> None:
    shards = numbers(tmp_path, {2: b"short"})
    sizes = {"one": 4, "two": 8}
    sources = {name: Source(shards, Numbers(), size) for name, size in sizes.items()}
    place: Any = {"accumulate": 2, "rank": 1, "world_size": 2, "start_step": 3}
    steps = list(streams(sources, workers=workers, **place))
    for name, size in sizes.items():
        found = [[content(micro_batch[name]) for micro_batch in step] for step in steps]
        assert found == contents(stream(shards, size, **place))
        assert len(found[0][0][0]) == size // 4


def test_the_modality_of_a_mistake_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    bad = numbers(tmp_path / "bad", dict.fromkeys(range(TOTAL), b"short"))
    shards = {"fine": numbers(tmp_path), "poor": bad}
    sources = {name: Source(one, Numbers(), 4) for name, one in shards.items()}
    with pytest.raises(DataBudgetError, match=r"^poor: every sample tried was bad"):
        next(streams(sources))


def test_bad_samples_are_replaced_in_their_place(tmp_path: Path) -> None:
    bad = {2: b"short", 9: b"junk", 15: b"-15"}
    (tmp_path / "good").mkdir()
    clean = contents(stream(numbers(tmp_path / "good")))
    dirty = contents(stream(numbers(tmp_path, bad)))
    reasons: dict[str, tuple[str, str]] = {}
    for [(inputs, masks, names, skipped, seen)], [before] in zip(dirty, clean, strict=True):
        assert masks == before[1]
        assert seen == len(names) + len(skipped)
        reasons |= {key: (reason, detail) for key, reason, detail in skipped}
        for i, name in enumerate(before[2]):
            assert (names[i], inputs[i]) != (name, before[0][i]) or int(name[1:]) not in bad
            assert int(name[1:]) in bad or (names[i], inputs[i]) == (name, before[0][i])
    assert reasons["k2"] == ("too short", "3 samples, at least 4 needed")
    assert reasons["k9"][0] == "undecodable"
    assert "ValueError" in reasons["k9"][1]
    assert reasons["k15"] == ("negative", "")


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_usable_stops_within_seconds(tmp_path: Path, workers: int) -> None:
    shards = numbers(tmp_path, dict.fromkeys(range(TOTAL), b"short"))
    start = time.monotonic()
    with pytest.raises(DataBudgetError) as caught:
        next(stream(shards, workers=workers))
    assert time.monotonic() - start < 20
    assert str(caught.value).startswith("every sample tried was bad: 21 x too short (such as k")
    assert "too short (3 samples, at least 4 needed)" in str(caught.value)
    assert str(caught.value).endswith("; samples: 3 to 4: 21")
    assert "Traceback" not in str(caught.value)


def test_killed_worker_is_explained(tmp_path: Path) -> None:
    shards = numbers(tmp_path, dict.fromkeys(range(TOTAL), b"kill"))
    with (
        pytest.raises(
            SelfdistillError, match=r"data worker died .*lower data.workers or"
        ) as caught,
        dead_workers_explained(),
    ):
        next(stream(shards, workers=2))
    assert caught.value.exit_code == 1


def test_other_errors_pass_through_unexplained() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), dead_workers_explained():
        raise RuntimeError("shapes differ")


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[list[Loaded]]:
    """A stream whose two workers have both delivered a step."""
    steps = stream(numbers(tmp_path), workers=2, steps=100)
    next(steps), next(steps)
    assert len(torch.multiprocessing.active_children()) == 2
    return steps


@pytest.fixture
def newer_python() -> Iterator[None]:
    """As 3.14 starts processes unless it is told how."""
    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method("forkserver", force=True)
    yield
    torch.multiprocessing.set_start_method(before, force=True)


def test_workers_are_children_of_the_main_process(
    newer_python: None, busy: Iterator[list[Loaded]], tmp_path: Path
) -> None:
    """They end where it is not their parent any more."""
    time.sleep(1.5 * ORPHAN_SECONDS)
    assert contents(busy) == contents(stream(numbers(tmp_path), start_step=2, steps=100))


def send_from_elsewhere(number: int, pids: Sequence[int | None]) -> None:
    """Not from the process that a worker takes SIGTERM from."""
    code = f"import os; [os.kill(pid, {int(number)}) for pid in {pids}]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_signals_from_others_leave_workers_alive(
    busy: Iterator[list[Loaded]], tmp_path: Path
) -> None:
    pids = [child.pid for child in torch.multiprocessing.active_children()]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        send_from_elsewhere(number, pids)
    assert contents(busy) == contents(stream(numbers(tmp_path), start_step=2, steps=100))


threads_of_new_processes = 0


def start_threads() -> None:
    for _ in range(threads_of_new_processes):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


os.register_at_fork(after_in_child=start_threads)


@pytest.fixture
def with_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As libraries have them that start some as soon as there is a process."""
    monkeypatch.setattr(sys.modules[__name__], "threads_of_new_processes", 3)


def test_nor_do_threads_take_them(
    with_threads: None, busy: Iterator[list[Loaded]], tmp_path: Path
) -> None:
    pids = [child.pid for child in torch.multiprocessing.active_children()]
    assert all(len(os.listdir(f"/proc/{pid}/task")) >= 4 for pid in pids)
    for _ in range(5):
        send_from_elsewhere(signal.SIGTERM, pids)
    assert contents(busy) == contents(stream(numbers(tmp_path), start_step=2, steps=100))


def test_the_main_process_is_not_left_deaf(busy: Iterator[list[Loaded]]) -> None:
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell who sent a signal")
def test_the_main_process_can_end_a_worker(busy: Iterator[list[Loaded]]) -> None:
    """Else a hanging worker, which torch terminates, would keep the run from ending."""
    worker = torch.multiprocessing.active_children()[0]
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0


def test_no_worker_stays_behind(busy: Iterator[list[Loaded]]) -> None:
    workers = torch.multiprocessing.active_children()
    busy.close()  # type: ignore[attr-defined]
    assert not any(worker.is_alive() for worker in workers)


def test_plain_examples_are_in_order_with_labels_and_without_chance(tmp_path: Path) -> None:
    members = [{"txt": str(i).encode()} for i in range(7)]
    members[0]["cls"], members[1]["cls"], members[4]["cls"] = b"3", b" 12\n", b"cat"
    members[2]["txt"], members[5]["txt"] = b"short", b"junk"
    path = shard(tmp_path / "a.tar", [(f"k{i}", m) for i, m in enumerate(members)])
    bad: list[Bad] = []
    found = list(plain_examples(ShardSet([path], ["txt"]), Numbers(), bad.append))
    assert [key for key, _, _ in found] == ["k0", "k1", "k3", "k4", "k6"]
    assert [example.tolist() for _, example, _ in found] == [[i, 0] for i in (0, 1, 3, 4, 6)]
    assert [label for _, _, label in found] == [3, 12, None, None, None]
    assert [(key, reason) for key, reason, _ in bad] == [("k2", "too short"), ("k5", "undecodable")]


def loaded(seen: int, *bad: tuple[str, str, str]) -> Loaded:
    return Loaded(Batch(torch.zeros(0)), list(bad), seen)


def step(ledgers: SkipLedgers, *micro_batches: MicroBatch) -> bool:
    """Count a step of the only process."""
    for micro_batch in micro_batches:
        ledgers.add(micro_batch)
    return ledgers.count(tried(micro_batches, micro_batches[0]))


class TestSkipLedgers:
    BAD = (("k", "too short", "1 of 4"), ("k", "corrupt", ""))

    def test_the_modality_is_named_where_there_are_several(self) -> None:
        several, one = SkipLedgers(1.0, ["a", "b"]), SkipLedgers(1.0, ["a"])
        assert several.add({"a": loaded(5), "b": loaded(5, *self.BAD)}) == [
            "skipped b k: too short (1 of 4)",
            "skipped b k: corrupt",
        ]
        assert one.add({"a": loaded(5, *self.BAD[:1])}) == ["skipped k: too short (1 of 4)"]
        assert (several.total(), one.total()) == (2, 1)

    def test_each_has_its_own_budget(self) -> None:
        """Else a modality with a small share of the batch could be bad throughout."""
        ledgers = SkipLedgers(0.05, ["a", "b"])
        assert not step(ledgers, {"a": loaded(10_000), "b": loaded(99, *self.BAD * 3)})
        ledgers.check([ledgers.state()])
        assert step(ledgers, {"a": loaded(1), "b": loaded(1)})
        with pytest.raises(SkipBudgetError, match=r"^b: skip budget exceeded: 6 of 100 samples"):
            ledgers.check([ledgers.state()])

    def test_state_survives_a_checkpoint(self) -> None:
        before, after = SkipLedgers(1.0, ["a", "b"]), SkipLedgers(1.0, ["a", "b"])
        before.add({"a": loaded(5), "b": loaded(5, *self.BAD)})
        after.load_state(json.loads(json.dumps(before.state())))
        assert after.state() == before.state()
        assert after.total() == 2

    def test_the_share_is_that_of_all_processes(self) -> None:
        """One alone sees too few to judge by, and in a run that goes on nothing of before."""
        before = SkipLedgers(0.05, ["a"])
        step(before, {"a": loaded(10_000, *self.BAD * 100)})
        main, other = SkipLedgers(0.05, ["a"]), SkipLedgers(0.05, ["a"])
        main.load_state(before.state())
        other.load_state(before.state(), as_own=False)
        assert other.total() == 0
        good, bad = {"a": loaded(100)}, {"a": loaded(100, *self.BAD * 5)}
        main.add(good)
        other.add(bad)
        together = np.add(tried([good], ["a"]), tried([bad], ["a"])).tolist()
        assert together == [200, 10]
        assert not main.count(together)
        assert not other.count(together)
        other.add({"a": loaded(0, *self.BAD * 151)})
        assert main.count([0, 302])
        assert other.count([0, 302])
        with pytest.raises(SkipBudgetError, match="512 of 10200 samples"):
            main.check([main.state(), other.state()])

    def test_those_of_several_processes_are_one(self) -> None:
        processes = [SkipLedgers(1.0, ["a", "b"]) for _ in range(2)]
        processes[0].add({"a": loaded(5), "b": loaded(5, *self.BAD)})
        processes[1].add({"a": loaded(7, *self.BAD[:1]), "b": loaded(7, *self.BAD[:1])})
        whole = SkipLedgers(1.0, ["a", "b"])
        whole.load_state(joined([ledgers.state() for ledgers in processes]))
        assert whole.total() == 4
        assert whole.state()["b"] == {
            "counts": {"too short": 2, "corrupt": 1},
            "seen": 12,
            "examples": ["k", "k", "k"],
            "retries": 0,
        }


class TestSkipLedger:
    def test_logs_the_first_five_of_each_reason(self) -> None:
        ledger = SkipLedger()
        bad = [(f"k{i}", "too short", "") for i in range(4)]
        assert ledger.add(loaded(10, *bad)) == bad
        assert ledger.add(loaded(10, *bad, ("x", "other", ""))) == [bad[0], ("x", "other", "")]
        assert (ledger.counts, ledger.seen) == ({"too short": 8, "other": 1}, 20)

    def test_stops_above_the_share_but_not_before_100_samples(self) -> None:
        ledgers = SkipLedgers(0.05, ["x"])
        bad = [("a", "too short", ""), ("b", "corrupt", ""), ("c", "corrupt", "")]
        assert not step(ledgers, {"x": loaded(99, *bad, *bad)})
        assert step(ledgers, {"x": loaded(1)})
        with pytest.raises(DataBudgetError) as caught:
            ledgers.check([ledgers.state()])
        assert str(caught.value) == (
            "skip budget exceeded: 6 of 100 samples (6.0%) were bad, data.max_bad_share allows "
            "5.0%: 4 x corrupt, 2 x too short; for example a, b, c"
        )
        assert caught.value.exit_code == 4

    def test_share_itself_is_allowed(self) -> None:
        ledgers = SkipLedgers(0.05, ["x"])
        assert not step(ledgers, {"x": loaded(100, *[("a", "corrupt", "")] * 5)})
        ledgers.check([ledgers.state()])

    def test_state_survives_a_checkpoint(self) -> None:
        bad = [(f"k{i}", "too short", "") for i in range(4)]
        before, after = SkipLedgers(0.05, ["x"]), SkipLedgers(0.05, ["x"])
        assert not step(before, {"x": loaded(90, *bad)})
        after.load_state(json.loads(json.dumps(before.state())))
        # the fifth of its reason
        assert after.add({"x": loaded(5, *bad[:2])}) == ["skipped k0: too short"]
        assert not after.count([5, 2])
        messages = []
        for ledgers, more in ((before, loaded(10, *bad)), (after, loaded(5, *bad[:2]))):
            assert step(ledgers, {"x": more})
            with pytest.raises(DataBudgetError, match="for example k0, k1, k2") as caught:
                ledgers.check([ledgers.state()])
            messages.append(str(caught.value))
        assert messages == [messages[0], messages[0]]


def test_the_next_shard_is_fetched_ahead(tmp_path: Path) -> None:
    """And only of shards that are elsewhere."""

    class Elsewhere(ShardSet):
        is_here = False  # type: ignore[assignment]
        asked: list[int] = []

        def prefetch(self, i: int) -> None:
            self.asked.append(i)

    here = numbers(tmp_path)
    paths = [tmp_path / f"{bound}.tar" for bound in np.cumsum([0, *SIZES[:-1]])]
    elsewhere = Elsewhere(paths, ["txt"])
    steps = {}
    for name, shards in (("here", here), ("elsewhere", elsewhere)):
        source = Source(shards, Numbers(), 4)  # type: ignore[arg-type]
        batches = training_batches(
            {"text": source},
            seed=0,
            accumulate=1,
            rank=0,
            world_size=1,
            start_step=0,
            steps=12,
            workers=0,
        )
        steps[name] = [step[0]["text"].batch.inputs[:, 0].int().tolist() for step in batches]
    assert steps["here"] == steps["elsewhere"]
    shard_of = np.repeat(np.arange(3), SIZES)
    seen = [shard_of[number] for step in steps["here"] for number in step]
    for step, asked in enumerate(elsewhere.asked):
        last = seen[step * 4 + 3]
        following = [shard for shard in seen[step * 4 + 4 :] if shard != last]
        if step < 3:  # the second epoch begins with the shard that the first ends with
            assert shard_of[asked] == following[0]
    assert len(elsewhere.asked) == 12


class Slow(Numbers):
    """Its first sample takes a while."""

    def decode(self, sample: Mapping[str, bytes]) -> Any:
        if not self.paused:
            self.paused = True
            time.sleep(1.5)
        return super().decode(sample)

    paused = False


def test_workers_that_make_nothing_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shards = numbers(tmp_path)
    prompt = [content(loaded) for (loaded,) in stream(shards, workers=1)]
    monkeypatch.setattr(loader, "STALLED_SECONDS", 0.4)
    slow = {"one": Source(shards, Slow(), 4)}
    found = [content(step[0]["one"]) for step in streams(slow, workers=1)]
    assert found == prompt
    assert "the data workers have made no batch for 0 s" in caplog.text
    monkeypatch.setattr(loader, "HOPELESS_SECONDS", 0.8)
    with pytest.raises(SelfdistillError, match=r"the data workers made no batch in 1 s: see .*"):
        list(streams(slow, workers=1))


def test_other_samples_have_another_fingerprint(tmp_path: Path) -> None:
    def fingerprint(name: str, text: bytes, samples: int = 3, first: int = 0) -> dict[str, Any]:
        folder = tmp_path / f"{len([*tmp_path.iterdir()])}"
        folder.mkdir()
        made = [(f"k{(first + i) % samples}", {"txt": text}) for i in range(samples)]
        return Source(ShardSet([shard(folder / name, made)], ["txt"]), Numbers(), 1).fingerprint()

    first = fingerprint("a.tar", b"12")
    assert first == fingerprint("a.tar", b"34")  # wherever it lies, its content is not read
    others = [
        fingerprint("a.tar", b"123"),
        fingerprint("b.tar", b"12"),
        fingerprint("a.tar", b"12", samples=4),
    ]
    assert first not in others
    assert len({other["sha256"] for other in others}) == 3
    in_another_order = fingerprint("a.tar", b"12", first=1)
    assert first["sha256"] == in_another_order["sha256"]
    assert first != in_another_order
