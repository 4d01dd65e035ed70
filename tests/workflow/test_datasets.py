from __future__ import annotations

import sys
from types import ModuleType

import pytest

from fullrank.data.datasets import dataset, list_datasets
from fullrank.errors import DownloadError
from fullrank.workflow.datasets import get_data

BY_HAND = [name for name in list_datasets() if not dataset(name).FILES]


@pytest.mark.parametrize("name", BY_HAND)
def test_what_cannot_be_downloaded_says_where_it_is_and_where_it_goes(name, tmp_path):
    with pytest.raises(DownloadError) as caught:
        get_data(name, tmp_path)
    assert dataset(name).HOME in caught.value.fix
    place = str(tmp_path / dataset(name).FOLDERS[0])
    assert name.startswith("simulated") != (place in caught.value.fix)
    assert "already" not in caught.value.found
    assert list(tmp_path.iterdir()) == []
    dataset(name).write_sample(tmp_path)
    with pytest.raises(DownloadError, match="already"):
        get_data(name, tmp_path)


def test_a_module_of_ones_own_need_not_name_files(tmp_path, monkeypatch):
    module = ModuleType("own_data.log")
    vars(module).update(NAME="own", SPEC=None, FOLDERS=("own",), load=None)
    monkeypatch.setitem(sys.modules, "own_data", ModuleType("own_data"))
    monkeypatch.setitem(sys.modules, "own_data.log", module)
    with pytest.raises(DownloadError, match="its owner"):
        get_data("own_data.log", tmp_path)
