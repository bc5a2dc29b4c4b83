"""Training on documents kept apart: ids, targets, and the gradient of the documents alone."""

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from longcat.flash import FlashModel
from longcat.train.batches import Windows, keep_apart
from longcat.train.metrics import TIMED_FIELDS

BOS = 1


def documents(kit, every=9):
    ids = kit.ids()
    ids[::every] = BOS
    return ids


def test_every_start_opens_a_document_and_drafts_end_before_it():
    tokens = np.array([5, 6, BOS, 7, 8, 2, BOS, 9, 9, 9])
    windows = Windows(tokens, seq_len=8, batch_size=1, seed=0, document_start=BOS)
    batch = windows.batch(0)
    assert batch.inputs.tolist() == [[5, 6, 1, 7, 8, 2, 1, 9]]
    assert batch.document_ids.tolist() == [[0, 0, 1, 1, 1, 1, 2, 2]]
    # From 6 and from 2 the next token is <s>: what follows it belongs to another document.
    assert batch.after_next.tolist() == [[1, 1, 8, 2, 1, 1, 9, 9]]
    plain = Windows(tokens, seq_len=8, batch_size=1, seed=0).batch(0)
    assert plain.document_ids is None
    assert plain.after_next.tolist() == [[1, 7, 8, 2, 1, 9, 9, 9]]


def of_documents_alone(model, batch, settings):
    """Gradient of both cross entropies, every document of every window run by itself."""
    apart = keep_apart(batch, BOS)
    n_main, n_mtp = (int((t != BOS).sum()) for t in (apart.next_ids, apart.after_next))
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(batch.inputs)):
        for number in np.unique(apart.document_ids[row]):
            here = apart.document_ids[row] == number
            ids, nxt, after = (
                torch.from_numpy(a[row][here])[None]
                for a in (apart.inputs, apart.next_ids, apart.after_next)
            )
            output = model(ids)
            drafted, _ = model.mtp(output.hidden, nxt)
            for logits, wanted, weight in (
                (output.logits, nxt, 1 / n_main),
                (drafted, after, settings.mtp_weight / n_mtp),
            ):
                nll = cross_entropy(logits[0], wanted[0], reduction="none")
                total = total + weight * nll[wanted[0] != BOS].sum()
    total.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


def difference(kit, *, document_mask):
    settings = kit.settings(
        precision="float64",
        grad_clip=1e9,
        lr=1e-9,
        balance_weight=0.0,
        z_loss_weight=0.0,
        document_mask=document_mask,
    )
    trainer = kit.trainer(settings, tokens=documents(kit))
    model = FlashModel(kit.config(), dtype=torch.float64, seed=settings.seed)
    want = of_documents_alone(model, trainer.windows.batch(0), settings)
    trainer.train_step()
    got = {n: p.grad for n, p in trainer.model.named_parameters()}
    return max(
        float((got[n] - g).abs().max() / g.abs().max().clamp(min=1e-30)) for n, g in want.items()
    )


def test_a_step_has_the_gradient_of_its_documents_alone(kit):
    assert difference(kit, document_mask=True) < 1e-9


def test_control_documents_that_meet_give_another_gradient(kit):
    assert difference(kit, document_mask=False) > 1e-2


def test_padding_is_in_no_figure_of_the_metrics_line(kit):
    """A batch whose last tokens are padding has the metrics of the batch without them."""

    def record(padded):
        settings = kit.settings(precision="float64", micro_batches=1, document_mask=True)
        trainer = kit.trainer(settings, tokens=documents(kit))
        whole = trainer.windows.batch(0)

        def cut(a, fill):
            a = a.copy()
            a[:, -8:] = fill
            return a if padded else a[:, :-8]

        batch = type(whole)(
            inputs=cut(whole.inputs, 0),
            next_ids=cut(whole.next_ids, BOS),
            after_next=cut(whole.after_next, BOS),
            document_ids=cut(whole.document_ids, -1),
        )
        trainer.windows.batch = lambda *_: batch
        return trainer.train_step()

    with_padding, without = record(True), record(False)
    for name in without.keys() - set(TIMED_FIELDS):
        a, b = with_padding[name], without[name]
        if b is None:
            assert a is None, name
        else:
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, err_msg=name)
