"""``warmfree report``: from a watched run to sentences and a page."""

import torch
from torch import nn

import warmfree
from warmfree.cli import main


def watched(folder, *, lr):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with warmfree.Monitor(model, optimizer, folder) as monitor:
        for _ in range(30):
            x = torch.randn(16, 4)
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.log(loss)


def test_one_run(tmp_path, capsys):
    watched(tmp_path / "calm", lr=0.05)
    assert main(["report", str(tmp_path / "calm")]) == 0
    said = capsys.readouterr().out
    assert "The loss went from" in said
    page = (tmp_path / "calm" / "report.html").read_text()
    assert "gradient norm" in page


def test_several_runs_make_one_page(tmp_path, capsys, monkeypatch):
    watched(tmp_path / "calm", lr=0.05)
    watched(tmp_path / "wild", lr=5.0)
    monkeypatch.chdir(tmp_path)
    assert main(["report", "calm", "wild"]) == 0
    assert "report: report.html" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert "calm" in page
    assert "wild" in page
    assert main(["report", "calm", "wild", "--out", "here/both.html"]) == 0
    assert (tmp_path / "here" / "both.html").exists()


def test_bad_input(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert "name the folder" in capsys.readouterr().err
