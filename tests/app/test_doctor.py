"""The doctor names what a bug report needs."""

import torch

from scoreexp.doctor import findings, main


def test_findings_name_versions_devices_and_disk(capsys):
    found = findings()
    assert found["torch"] == torch.__version__
    assert "missing" not in found.values()
    assert "GiB" in found["free disk here"]
    main()
    assert torch.__version__ in capsys.readouterr().out
