"""What was measured so far, on disk as soon as it is there."""

from pathlib import Path
from typing import Any

from batchlab.documents import plain, write_json, writing

FILE = "advice.json"


class Keep:
    """A JSON document that grows by stages; written at every one where there is a directory."""

    def __init__(self, out: Path | None) -> None:
        """Raises `UserError` where `out` can't be made."""
        self._out = out
        self._document: dict[str, Any] = {"status": "running"}
        if out is not None:
            with writing(out):
                out.mkdir(parents=True, exist_ok=True)

    def stage(self, name: str, value: object) -> None:
        """Add a stage, or put it in its earlier version's place."""
        self._document[name] = plain(value)
        if self._out is not None:
            with writing(self._out):
                write_json(self._out / FILE, self._document)

    def failed(self, error: BaseException) -> None:
        """Say how it ended."""
        self._document["status"] = "failed"
        self.stage("error", " ".join(str(error).split()) or type(error).__name__)

    def finished(self, answer: dict[str, Any]) -> None:
        """The answer, which is complete by itself: it takes the place of the stages."""
        self._document = {"status": "finished", **self._document, **plain(answer)}
        self._document["status"] = "finished"
        self.stage("recommended", answer["recommended"])
