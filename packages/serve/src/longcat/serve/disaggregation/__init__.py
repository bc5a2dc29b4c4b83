"""Prompts in one process, text in another: prefill/decode disaggregation.

    engine = Disaggregated(decode_engine, PrefillProcess(factory))
    engine.add(request)
    while engine.has_work:
        for delta in engine.step(): ...

A prompt's pass keeps everybody who decodes waiting. Here it runs in another process, which sends
what each attention has stored as soon as it has, and the tokens are those of one process.

    prefill  feeds prompts, sends latents attention by attention, then the first token and drafts
    decode   holds pages beforehand, skips what its prefix cache has, goes on from the first token
    front    brings the two together, and begins anew when prefill dies

Source: report section 6 (disaggregation, layer-wise transfer).
"""

from longcat.serve.disaggregation.decode import DecodeNode
from longcat.serve.disaggregation.front import Disaggregated
from longcat.serve.disaggregation.local import LocalPrefill
from longcat.serve.disaggregation.messages import Failed, Handover, Message, Piece
from longcat.serve.disaggregation.prefill import PrefillNode
from longcat.serve.disaggregation.process import PrefillProcess
from longcat.serve.disaggregation.timeline import Span, Timeline
from longcat.serve.disaggregation.transport import Broken, Receiver, Sender

__all__ = [
    "Broken",
    "DecodeNode",
    "Disaggregated",
    "Failed",
    "Handover",
    "LocalPrefill",
    "Message",
    "Piece",
    "PrefillNode",
    "PrefillProcess",
    "Receiver",
    "Sender",
    "Span",
    "Timeline",
]
