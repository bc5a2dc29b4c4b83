"""A byte-level BPE tokenizer: any bytes in, the same bytes out.

Notable:
- every one of the 256 bytes is in the vocabulary, so nothing is ever unknown;
- a newline keeps the indentation that follows it, because in source code that pair is one thing;
- digits stand alone, so a number's tokens are its digits (report section 2.4);
- text that happens to spell `<s>` is text: control tokens come from ids, never from the input;
- the files written are what transformers' AutoTokenizer, vLLM and SGLang read, the chat template
  of a tokenizer made for chat included (`longcat.flash.chat`).
"""

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as BackendTokenizer

from longcat.chat import Template, template_of
from longcat.flash.errors import CheckpointError

CHAT_TEMPLATE = "chat_template.jinja"
UNK, BOS, EOS, PAD = 0, 1, 2, 3
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
_BATCH = 64  # texts encoded at once
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256

# One alternative per kind of piece, tried in this order; BPE merges never cross a border.
_PIECES = (
    r"[\r\n]+[ \t]*"  # newlines with the indentation of the next line
    r"|\p{N}"  # one digit
    r"| ?\p{L}+"  # a word, with the space before it
    r"| ?[^\s\p{L}\p{N}]+"  # punctuation, with the space before it
    r"|[ \t]+(?=[\r\n])"  # trailing blanks
    r"|\s+(?!\S)|\s+"
)


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_alphabet()
_CHARACTER_OF_BYTE = {b: c for c, b in _BYTE_OF_CHARACTER.items()}


class Tokenizer:
    """Text to ids and back.

    Args:
        backend: a `tokenizers.Tokenizer`. Use `Tokenizer.load` or `Tokenizer.train_bpe`.
        chat: the chat format that a model with this tokenizer was trained for, if any.

    Attributes:
        markers: ids of the control tokens that were added to the vocabulary, by their text.
    """

    def __init__(self, backend: BackendTokenizer, chat: Template | None = None) -> None:
        backend.encode_special_tokens = True
        self._backend = backend
        self.chat = chat
        added = backend.get_added_tokens_decoder().items()
        self.markers: dict[str, int] = {t.content: i for i, t in added if t.special}
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        ids = [backend.token_to_id(name) for name in SPECIAL_TOKENS]
        self._special = {i for i in ids if i is not None} | set(self.markers.values())
        defaults = enumerate(ids)
        _, self.bos_id, self.eos_id, self.pad_id = (d if i is None else i for d, i in defaults)
        self._bytes: list[bytes] | None = None

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn `vocab_size` entries (4 control tokens, 256 bytes, merges) from texts.

        Raises:
            ValueError: when vocab_size leaves no room for the bytes.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise ValueError(
                f"tokenizer: vocab_size must be at least {SMALLEST_VOCABULARY} (4 control tokens "
                f"and 256 bytes); got {vocab_size}"
            )
        backend = BackendTokenizer(models.BPE(unk_token=None))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            show_progress=False,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(_BYTE_OF_CHARACTER),
        )
        backend.train_from_iterator(texts, trainer)
        # Other programs get the beginning-of-text token that training put before every document.
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
        )
        return cls(backend)

    @classmethod
    def load(cls, directory: str | Path) -> "Tokenizer":
        """Read `tokenizer.json`, and the chat template if one of ours is beside it.

        Raises:
            CheckpointError: when it is missing or cannot be read.
        """
        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"tokenizer: expected {path}, found no such file; a checkpoint needs its "
                "tokenizer.json to turn text into ids"
            )
        template = path.with_name(CHAT_TEMPLATE)
        try:
            chat = template_of(template.read_text("utf-8")) if template.is_file() else None
            return cls(BackendTokenizer.from_file(str(path)), chat)
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"tokenizer: {path} cannot be read: {error}") from error

    def with_markers(self, chat: Template) -> "Tokenizer":
        """This tokenizer for chat: the format's markers become one control token each.

        Those that are no control token yet get the next free ids, in the format's order; all other
        ids stay.
        """
        backend = BackendTokenizer.from_str(self._backend.to_str())
        backend.add_special_tokens([AddedToken(m, special=True) for m in chat.special])
        return Tokenizer(backend, chat)

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and, for chat, chat_template.jinja."""
        folder = Path(directory)
        self._backend.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>" if self.chat is None else self.chat.end,
            "pad_token": "<pad>",
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
        }
        text = json.dumps(config, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
        if self.chat is not None:
            (folder / CHAT_TEMPLATE).write_text(self.chat.jinja, encoding="utf-8")

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Ids of text; `bos` puts <s> in front, as it stands before every training document."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return [self.bos_id, *ids] if bos else ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts at once, on all cores."""
        ids: list[list[int]] = []
        for first in range(0, len(texts), _BATCH):  # an encoding is far larger than its ids
            batch = list(texts[first : first + _BATCH])
            encodings = self._backend.encode_batch(batch, add_special_tokens=False)
            ids += [encoding.ids for encoding in encodings]
        return ids

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any bytes: text through BPE, bytes that are not UTF-8 one token each."""
        ids: list[int] = []
        text = data.decode("utf-8", errors="surrogateescape")
        borders = [i for i, c in enumerate(text) if "\udc80" <= c <= "\udcff"]
        for start, stop in pairwise([-1, *borders, len(text)]):
            if stop > start + 1:
                ids += self.encode(text[start + 1 : stop])
            if stop < len(text):
                ids.append(self._byte_id(ord(text[stop]) - 0xDC00))
        return ids

    def _byte_id(self, byte: int) -> int:
        found = self._backend.token_to_id(_CHARACTER_OF_BYTE[byte])
        return UNK if found is None else found  # only a foreign tokenizer lacks bytes

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; control tokens are dropped, bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of ids.

        Raises:
            ValueError: for an id outside the vocabulary.
        """
        table = self.token_bytes()
        parts = []
        for i in ids:
            if not 0 <= i < len(table):
                raise ValueError(
                    f"tokenizer: ids must lie in 0..{len(table) - 1}; got {i}. Was the text "
                    "encoded with another tokenizer?"
                )
            parts.append(table[i])
        return b"".join(parts)

    def token_bytes(self) -> list[bytes]:
        """The bytes of every id [V]; control tokens stand for none."""
        if self._bytes is None:
            self._bytes = []
            for i in range(self.vocab_size):
                token = None if i in self._special else self._backend.id_to_token(i)
                self._bytes.append(b"" if token is None else _bytes_of(token))
        return self._bytes


def _bytes_of(token: str) -> bytes:
    if all(c in _BYTE_OF_CHARACTER for c in token):
        return bytes(_BYTE_OF_CHARACTER[c] for c in token)
    return token.encode("utf-8")  # an added token of a foreign tokenizer
