"""Time our BERT against the one of `transformers`, and see how much memory each takes."""

import resource
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import final

import pandas
import torch
import torch.nn.functional as F
from torch import nn

from foredraft.benchmarks.timing import Schedule, Spread, columns, compare, now
from foredraft.models.bert.config import BertConfig
from foredraft.models.bert.model import Bert, BertForPretraining
from foredraft.models.bert.weights import minilm
from foredraft.types import Bool, Int, Tensor

WORKLOADS: Mapping[str, tuple[int, ...]] = {
    "32 tokens each": (32,) * 32,
    "128 tokens each": (128,) * 32,
    "8 to 256 tokens, as texts are": tuple(round(8 * 32 ** (row / 31)) for row in range(32)),
    "8 to 256 tokens, evenly": tuple(8 + 8 * row for row in range(32)),
}
"""Tokens in each of 32 rows. Texts are short rather than long: evenly spread are the logarithms."""

TRAINED = ("128 tokens each", "8 to 256 tokens, as texts are")
"""Workloads that training steps are timed on: they take a hundred times as long as encoding."""
ENCODINGS = Schedule(repeats=21)
"""How often encoding is timed: it is short, so that a busy neighbour weighs more."""
MASKED = 0.15
"""Share of tokens that a masked language model guesses in training."""
RATE = 1e-5
"""Learning rate of the training steps that are timed."""
Arms = dict[str, Callable[[], object]]
"""What is timed, ours and theirs."""
Loader = Callable[[Path, str], nn.Module]
"""From a model's folder and a device to the model."""


@final
@dataclass(frozen=True, slots=True)
class Batch:
    """Random tokens, padded on the right to the longest row; `chosen` ones are to be guessed."""

    ids: Int[Tensor, "batch seq"]
    mask: Int[Tensor, "batch seq"] | None
    chosen: Bool[Tensor, "batch seq"]

    @classmethod
    def drawn(
        cls, lengths: Sequence[int], config: BertConfig, *, generator: torch.Generator
    ) -> "Batch":
        """Draw rows of these lengths, in random order; without padding there is no mask."""
        size = torch.tensor(lengths)[torch.randperm(len(lengths), generator=generator), None]
        shape = (len(lengths), max(lengths))
        mask = (torch.arange(shape[1]) < size).long()
        ids = torch.randint(1, config.vocab_size, shape, generator=generator) * mask
        chosen = (torch.rand(shape, generator=generator) < MASKED) & mask.bool()
        return cls(ids, None if mask.all() else mask, chosen)

    def to(self, device: str) -> "Batch":
        """Move it to a device."""
        mask = None if self.mask is None else self.mask.to(device)
        return Batch(self.ids.to(device), mask, self.chosen.to(device))


def bert_benchmark(
    *,
    folder: Path | None = None,
    workloads: Mapping[str, Sequence[int]] = WORKLOADS,
    device: str = "cpu",
    schedule: Schedule | None = None,
    clock: Callable[[], float] = now,
    report: Callable[[str], object] = lambda line: None,
) -> pandas.DataFrame:
    """Time our BERT against `transformers`' (sdpa) with the same float32 weights.

    One row for each workload and task: encoding, as loaded and with weights laid out for the
    processor (`pack`); training steps (forward, backward, AdamW) of the encoder and of a masked
    language model, for the workloads in TRAINED; on the CPU, the peak of memory of a process that
    encodes once, in both layouts. A ratio of 2 means that ours takes half the milliseconds
    or megabytes (columns `unit` and those named after an arm). `folder` None: all-MiniLM-L6-v2.
    """
    folder = minilm() if folder is None else folder
    config = Bert.from_pretrained(folder).config
    generator = torch.Generator().manual_seed(0)
    rows = []
    for workload, lengths in workloads.items():
        batch = Batch.drawn(lengths, config, generator=generator)
        about = {"workload": workload, **_size(batch), "dtype": "float32"}
        tasks = _ENCODING | (_TRAINING if workload in TRAINED else {})
        for task, arms in tasks.items():
            report(f"{workload}: {task}")
            labels = {"task": task, **about}
            chosen = schedule or (ENCODINGS if task in _ENCODING else Schedule())
            timed = compare(
                arms(folder, batch.to(device), device),
                schedule=chosen,
                device=device,
                labels=labels,
                clock=clock,
            )
            both = (timed.spread("foredraft"), timed.spread("transformers"))
            ratio = timed.ratio("transformers", "foredraft")
            rows.append(_row(timed.labels, "ms", *both, ratio))
        if device == "cpu":
            report(f"{workload}: peak of memory")
            rows += [_memory_row(folder, batch, about, packs=packs) for packs in (False, True)]
    return pandas.DataFrame(rows)


def peak_megabytes(model: Loader, folder: Path, batch: Batch, threads: int) -> float:
    """Give the most memory that a fresh process ever had that loads a model and encodes once."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(_encode_once, model, folder, batch, threads).result()


def _encodings(folder: Path, batch: Batch, device: str) -> Arms:
    return {
        "foredraft": _encoding(_loaded(folder, device), batch),
        "transformers": _encoding(_reference(folder, device), batch),
    }


def _packed_encodings(folder: Path, batch: Batch, device: str) -> Arms:
    return {
        "foredraft": _encoding(_packed(folder, device), batch),
        "transformers": _encoding(_reference(folder, device), batch),
    }


def _encoder_steps(folder: Path, batch: Batch, device: str) -> Arms:
    ours, theirs = Bert.from_pretrained(folder, device=device), _reference(folder, device)
    return {
        "foredraft": _step(ours, lambda: _spread_out(ours, batch)),
        "transformers": _step(theirs, lambda: _spread_out(theirs, batch)),
    }


def _loaded(folder: Path, device: str) -> nn.Module:
    return Bert.from_pretrained(folder, device=device)


def _packed(folder: Path, device: str) -> nn.Module:
    return Bert.from_pretrained(folder, device=device).pack()


def _reference(folder: Path, device: str) -> nn.Module:
    from transformers import BertModel

    model = BertModel.from_pretrained(folder, attn_implementation="sdpa")
    return model.to(torch.device(device))  # pyright: ignore[reportArgumentType]


def _encoding(model: nn.Module, batch: Batch) -> Callable[[], object]:
    model.eval()

    @torch.inference_mode()
    def encode() -> object:
        model.eval()
        return model(batch.ids, attention_mask=batch.mask)

    return encode


def _spread_out(model: nn.Module, batch: Batch) -> Tensor:
    """Give a loss that reads every chosen token's state, for want of a task."""
    return model(batch.ids, attention_mask=batch.mask).last_hidden_state[batch.chosen].pow(2).mean()


def _guesser_steps(folder: Path, batch: Batch, device: str) -> Arms:
    from transformers import BertConfig as HfConfig
    from transformers import BertForMaskedLM

    ours = BertForPretraining(Bert.from_pretrained(folder), next_sentence=False)
    ours.initialise(generator=torch.Generator().manual_seed(0)).to(device)
    fields = {**ours.config.fields(), "attn_implementation": "sdpa"}
    theirs = BertForMaskedLM(HfConfig(**fields))
    theirs.to(torch.device(device))  # pyright: ignore[reportArgumentType]
    labels = batch.ids.masked_fill(~batch.chosen, -100)

    def our_loss() -> Tensor:
        guessed = ours(batch.ids, batch.mask, chosen=batch.chosen)
        return F.cross_entropy(guessed.prediction_logits, batch.ids[batch.chosen])

    def their_loss() -> Tensor:
        return theirs(batch.ids, attention_mask=batch.mask, labels=labels).loss

    return {"foredraft": _step(ours, our_loss), "transformers": _step(theirs, their_loss)}


_ENCODING = {"encode": _encodings, "encode, packed": _packed_encodings}
_TRAINING = {"train the encoder": _encoder_steps, "train to guess words": _guesser_steps}


def _step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def _memory_row(
    folder: Path, batch: Batch, about: Mapping[str, object], *, packs: bool
) -> dict[str, object]:
    threads = torch.get_num_threads()
    task = "encode once, packed" if packs else "encode once"
    labels = {"task": task, **about, "device": "cpu", "threads": threads}
    arms = (_packed if packs else _loaded, _reference)
    rounds = [[peak_megabytes(arm, folder, batch, threads) for arm in arms] for _ in range(3)]
    ours, theirs = (Spread.of(values) for values in zip(*rounds, strict=True))
    return _row(labels, "MB", ours, theirs, Spread.of([his / our for our, his in rounds]))


def _encode_once(model: Loader, folder: Path, batch: Batch, threads: int) -> float:
    torch.set_num_threads(threads)
    _encoding(model(folder, "cpu"), batch)()
    return _peak()


def _peak() -> float:
    """Read the peak of this process; what `getrusage` says begins at that of its parent."""
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _size(batch: Batch) -> dict[str, object]:
    rows, seq = batch.ids.shape
    tokens = rows * seq if batch.mask is None else int(batch.mask.sum())
    return {"batch": rows, "tokens": tokens, "padding": 1 - tokens / (rows * seq)}


def _row(
    labels: Mapping[str, object], unit: str, ours: Spread, theirs: Spread, ratio: Spread
) -> dict[str, object]:
    return {
        **labels,
        "unit": unit,
        **columns("foredraft", ours),
        **columns("transformers", theirs),
        **columns("ratio", ratio),
        "n": ratio.n,
    }
