"""Series of rare events begin at zero: `increase()` does not see the first event of one that begins with it."""

from __future__ import annotations

from prometheus_client import REGISTRY

from sheetanchor.ingest.frame_receiver import FrameReceiver
from sheetanchor.sbe import DECODE_ERROR_KINDS
from sheetanchor_operator import metrics
from sheetanchor_operator.controller.pipeline_metrics import PipelineMetrics
from support.reference import KINDS


def test_an_ingestor_shows_what_has_not_happened() -> None:
    """Refused frames of every kind, shed frames and jumps of ids are zero before the first frame."""
    FrameReceiver(["ZEROUSDT"], 1_000_000)

    assert KINDS == DECODE_ERROR_KINDS
    for kind in DECODE_ERROR_KINDS:
        assert REGISTRY.get_sample_value("ingestor_sbe_decode_errors_total", {"kind": kind}) is not None
    for stream in ("bestBidAsk", "other"):
        labels = {"symbol": "ZEROUSDT", "stream": stream}
        assert 0.0 == REGISTRY.get_sample_value("ingestor_frames_shed_total", labels)
    for stream in ("trade", "depth"):
        labels = {"symbol": "ZEROUSDT", "stream": stream}
        assert 0.0 == REGISTRY.get_sample_value("ingestor_sbe_sequence_gaps_total", labels)


def test_an_operator_shows_what_has_not_happened() -> None:
    """A pipeline's failed and successful runs are there before the first one; so is the limit of its memory."""
    measures = PipelineMetrics()
    measures.take(("zero", "btc"), {}, [], announced=False)
    for result in ("success", "failure"):
        labels = {"namespace": "zero", "name": "btc", "mechanism": "reanchor", "result": result}
        assert 0.0 == metrics.REGISTRY.get_sample_value("recovery_attempts_total", labels)
    measures.forget(("zero", "btc"))
    limit = metrics.REGISTRY.get_sample_value("sheetanchor_memory_limit_bytes")
    assert limit is not None
    assert limit > 0
