"""What libraries do to the process when they are imported is undone."""

import os

from bitgate.sources.quiet import untouched


def test_the_environment_is_as_before_and_nothing_is_printed(monkeypatch, capsys):
    monkeypatch.setenv("HF_HOME", "here")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    try:
        with untouched():
            print("a banner")  # noqa: T201
            os.environ |= {"HF_HOME": "there", "HF_HUB_CACHE": "there"}
            raise ImportError
    except ImportError:
        pass
    assert os.environ["HF_HOME"] == "here"
    assert "HF_HUB_CACHE" not in os.environ
    assert capsys.readouterr().out == ""
