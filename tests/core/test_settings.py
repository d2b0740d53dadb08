from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from medseg.core.errors import SettingsError
from medseg.core.settings import TrainSettings, cache_folder, config_names, read_config, seconds


def build(*pairs: str, config: str | Path | None = None, **stated: Any) -> TrainSettings:
    return TrainSettings.build(config=config, pairs=pairs, stated=stated)


@pytest.mark.parametrize(
    ("text", "span_s"),
    [
        ("90", 90),
        (90, 90),
        ("45s", 45),
        ("10min", 600),
        ("1.5h", 5400),
        (" 2 H ", 7200),
        ("1d", 86400),
    ],
)
def test_seconds(text: str | float, span_s: float) -> None:
    assert seconds(text) == span_s


@pytest.mark.parametrize("text", ["", "ten", "5 weeks", "-3s", "0", "1:30"])
def test_no_span_of_time(text: str) -> None:
    with pytest.raises(SettingsError, match="10min"):
        seconds(text)


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 1\ndevice: cuda\ninner_share: 0.2\n")
    settings = build("seed=2", "inner_share=0.3", config=file, inner_share=0.4, seed=None)
    assert (settings.device, settings.seed, settings.inner_share) == ("cuda", 2, 0.4)


def test_a_stated_length_replaces_that_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text("budget: 10min\n")
    assert build(config=file).budget_s == 600
    settings = build(config=file, epochs=3)
    assert (settings.epochs, settings.budget_s) == (3, None)
    file.write_text("epochs: 7\n")
    settings = build(config=file, budget_s=60.0)
    assert (settings.epochs, settings.budget_s) == (None, 60)
    with pytest.raises(SettingsError, match="not both"):
        build("budget=1min", "epochs=3")


def test_plan_changes_are_dotted() -> None:
    settings = build("plan.training.batch_size=4", "plan.patch_size=[8, 8, 1]")
    assert settings.plan_changes() == {"training.batch_size": 4, "patch_size": [8, 8, 1]}


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        (("sed=3",), "Did you mean 'seed'"),
        (("seed",), "key=value"),
        (("seed=-1",), "seed"),
        (("seed=many",), "seed"),
        (("fold=5",), "fold"),
        (("inner_share=0.5",), "inner_share"),
        (("seed=1", "seed.x=2"), "a key of a section"),
    ],
)
def test_wrong_settings(pairs: tuple[str, ...], told: str) -> None:
    with pytest.raises(SettingsError, match=told) as caught:
        build(*pairs)
    assert "\n" not in str(caught.value)


def test_fold_may_be_a_number() -> None:
    assert build("fold=3").fold == "3"
    assert build("fold=all-data").fold == "all-data"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        build().seed = 3  # type: ignore[misc]


def test_every_preset_holds() -> None:
    assert {"default", "demo", "fast"} <= set(config_names())
    for name in config_names():
        build(config=name)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "1: 2", "", "\x00"])
def test_files_that_are_no_settings(tmp_path: Path, text: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"wrong\.yaml"):
        read_config(file)


def test_absent_configs(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="default"):
        read_config("no_such_preset")
    with pytest.raises(SettingsError, match="no such file"):
        read_config(tmp_path / "none.yaml")


def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG_CACHE", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_folder() == tmp_path / "named"
    monkeypatch.delenv("MEDSEG_CACHE")
    assert cache_folder() == tmp_path / "shared" / "medseg"
    # A relative one is to be ignored.
    monkeypatch.setenv("XDG_CACHE_HOME", "shared")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "medseg"

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert cache_folder() is None
