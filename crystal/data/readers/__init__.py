"""Readers: the files of a corpus -> documents, streamed in bounded memory.

A reader is any class with the methods of `Reader`, named by `_target_`; these are the ones that come along. The surprise: damage is
yielded, not raised. What a reader cannot give comes as a `Broken` in its place, and whoever reads decides whether that is the end.
"""

from crystal.data.readers.document import Broken, Document, Reader
from crystal.data.readers.parquet import StarCoder
from crystal.data.readers.text import JsonLines, SlimPajama, TextFolder
from crystal.data.readers.tokenized import Megatron, TokenArray

__all__ = ["Broken", "Document", "JsonLines", "Megatron", "Reader", "SlimPajama", "StarCoder", "TextFolder", "TokenArray"]
