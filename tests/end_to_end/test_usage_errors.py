"""Whatever is wrong with the configuration is said before anything is measured: exit status 4,
with the file, the entry and the key, by the controller alone."""

from __future__ import annotations

import pytest

MISTAKES = {
    "unknown metric": (
        "thresholds.toml",
        "require.perplexity_ratio",
        "require.perplexty_ratio",
        ["thresholds.toml", "quality", "perplexty_ratio", "did you mean 'perplexity_ratio'?"],
    ),
    "unknown bound": (
        "thresholds.toml",
        "{ max = 2 }",
        "{ maximum = 2 }",
        ["thresholds.toml", "quality", "maximum"],
    ),
    "wrong type": (
        "thresholds.toml",
        "{ max = 2 }",
        '{ max = "2" }',
        ["thresholds.toml", "quality", "perplexity_ratio", "max"],
    ),
    "matches nothing": (
        "thresholds.toml",
        "{ bits = [8, 4] }",
        "{ bits = [8, 5] }",
        ["thresholds.toml", "quality", "match.bits", "5"],
    ),
    "unknown model": (
        "fixtures/matrix.toml",
        'models = ["llama-tiny"]',
        'models = ["lama-tiny"]',
        ["matrix.toml", "number 1", "models", "lama-tiny", "did you mean 'llama-tiny'?"],
    ),
    "unknown key": (
        "fixtures/models.toml",
        "family =",
        "famly =",
        ["models.toml", "[model.llama-tiny]", "famly", "unknown key"],
    ),
}


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(project, mistake, workers):
    file, right, wrong, words = MISTAKES[mistake]
    path = project.path / file
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    done = project.run("-n", workers)
    assert done.returncode == 4, done.stdout + done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert "passed" not in done.stdout
    assert "Traceback" not in done.stderr


def test_missing_thresholds(project):
    (project.path / "thresholds.toml").unlink()
    done = project.run()
    assert done.returncode == 4
    assert "thresholds.toml" in done.stderr


def test_benchmarks_without_a_matrix(project):
    (project.path / "fixtures" / "matrix.toml").unlink()
    done = project.run()
    assert done.returncode == 4
    assert "matrix.toml" in done.stdout + done.stderr


#: what each of these would otherwise do: measure elsewhere, nowhere, twice or not at all
WORKERS = {
    "replaced": (["-n", "2", "--tx", "ssh=gpu"], "type --dist load --tx ssh=gpu"),
    "ignored": (["--tx", "popen"], "type --dist load --tx popen"),
    "twice": (["--dist", "each", "--tx", "2*popen"], "use --dist load"),
    "malformed": (["--dist", "load", "--tx", "popen//popen"], "--tx popen//popen: "),
    "elsewhere": (["--dist", "load", "--tx", "popen//chdir=there"], "leave chdir= out"),
    "shared": (["--dist", "load", "--tx", "2*popen", "--devices", "0"], "2 workers for 1 devices"),
    "untimed": (["-n", "2", "--benchmark-only", "--benchmark-disable"], "Can't have both"),
}


@pytest.mark.parametrize("mistake", WORKERS)
def test_mistakes_about_workers(project, mistake):
    arguments, words = WORKERS[mistake]
    done = project.run(*arguments)
    assert done.returncode == 4, done.stdout + done.stderr
    assert words in done.stderr
    assert "passed" not in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert not (project.path / "there").exists()


def test_a_choice_of_nothing_that_is_due_says_where_more_is(project):
    done = project.run("-k", "w2g64")
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    said = "none was chosen of the 4 cases that are due at cadence commit; "
    assert said + "--cadence weekly has all 5" in done.stdout
    assert "none was chosen" not in project.run("-k", "w2g64", "--cadence", "weekly").stdout
