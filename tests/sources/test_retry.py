"""Waits between attempts, and what may be said of a URL."""

import numpy as np
import pytest
import requests

from smgrid.errors import ConfigError
from smgrid.sources import retry


@pytest.mark.parametrize(
    ("stated", "wait"),
    [("7", 7), ("100000", 300), ("", 0), ("soon", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)
def test_what_retry_after_asks_for(stated, wait):
    answer = requests.Response()
    answer.headers["Retry-After"] = stated
    assert retry.asked_wait(answer) == wait


def test_the_waits_are_drawn_around_the_stated_ones(monkeypatch):
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "")
    drawn = np.array([retry.retry_pauses((1.0, 10.0)) for _ in range(200)])
    assert (drawn >= [0.5, 5]).all()
    assert (drawn <= [1.5, 15]).all()
    assert (np.ptp(drawn, axis=0) > [0.5, 5]).all()
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "none")
    assert retry.retry_pauses((1.0, 10.0)) == ()
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "1;2")
    with pytest.raises(ConfigError, match="SMGRID_RETRY_PAUSES is '1;2'; write seconds"):
        retry.retry_pauses((1.0,))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("'/vsicurl/https://a/b.tif?st=1&sig=x%3D' not recognized", "'/vsicurl/https://a/b.tif'"),
        ("HTTP error code: 503 - http://a/b.tif?sig=x. Retrying again", "http://a/b.tif Retrying"),
        ('"HEAD /b.tif?sig=x HTTP/1.1" 503', '"HEAD /b.tif HTTP/1.1" 503'),
        ("Authorization: Bearer x.y-z", "Authorization: Bearer ..."),
        ("is it there? yes", "is it there? yes"),
    ],
)
def test_what_may_be_said(text, clean):
    assert clean in retry.redact(text)
    assert "x" not in retry.redact(text)
