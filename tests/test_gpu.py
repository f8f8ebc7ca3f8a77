"""notebooks/gpu.py without a GPU: its loop is step 6's, and it runs on the second device."""

import json

import pytest
import torch

import gpu
import parameters
import records
import utils


def test_the_loop_written_out_is_step_6s(digits):
    """Same draws, same losses, same weights as the ordinary loop; an epoch ends with a batch."""
    data = utils.Data(digits.train[:512], digits.val, digits.test, "digits", 0.3, 0.4)
    scope = gpu.step_6(data=data, EPOCHS=2)
    plan, generator = gpu.draw_plan(data, 2, 3), utils.seed_everything(3)
    warp = {"generator": generator, "augment": scope["random_affine"]}
    models = []
    for _ in range(2):
        utils.seed_everything(3)  # initial weights; then dropout draws the same masks
        models.append(scope["make_model"]().train())
    optimizer = scope["make_optimizer"](models[0])
    scheduler = scope["make_scheduler"](optimizer)
    utils.seed_everything(4)
    losses = [utils.train_epoch(models[0], data.loader("train", 128, **warp), optimizer, scheduler)]
    utils.seed_everything(4)
    step, state = gpu.make_step(models[1], data, plan, scope["hyperparameters"], None)
    found = [step() for _ in range(4)]
    assert torch.stack(found).mean().item() == pytest.approx(losses[0][0], rel=1e-5)
    for key, value in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[key], value, rtol=1e-4, atol=1e-5)
    assert state[-1].item() == 4, "the next call takes the fifth row"
    assert len(plan.order) == 8 and plan.order[:4].flatten().unique().numel() == 512
    assert plan.rates[0] == pytest.approx(0.1 / 25) and plan.rates.max() <= 0.1


@pytest.mark.parametrize(("dtype", "close"), [(torch.float16, 0.1), (torch.bfloat16, 0.3)])
def test_low_precision_takes_nearly_the_same_step(digits, dtype, close):
    data, moved = utils.Data(digits.train[:256], digits.val, digits.test, "digits", 0.3, 0.4), []
    scope, plan = gpu.step_6(data=digits, EPOCHS=1), gpu.draw_plan(data, 1, 0)
    for kind in (None, dtype):
        utils.seed_everything(0)
        model = scope["make_model"]().train()
        before = model[1][0].weight.clone()
        step, _ = gpu.make_step(model, data, plan, scope["hyperparameters"], kind)
        assert step().isfinite()
        moved.append(model[1][0].weight - before)
    gap = (moved[1] - moved[0]).norm() / moved[0].norm()
    assert 0 < gap < close, "the loss was scaled up, and its gradient not down again?"


@pytest.mark.parametrize("jobs", [(), ("graph",)])
def test_without_a_gpu_it_says_so(jobs, monkeypatch):
    monkeypatch.setattr(utils, "pick_device", lambda: torch.device("cpu"))
    monkeypatch.setattr("sys.argv", ["gpu.py", *jobs])
    with pytest.raises(SystemExit, match="No GPU here"):
        gpu.main()


def test_all_jobs_are_told_and_done_and_one_that_fails_stops_no_other(monkeypatch, tmp_path):
    """The notebooks that they run get parameters that exist, and end with the cell they name."""
    ran, told = {}, {line.split()[0] for line in gpu.__doc__.splitlines() if "  " in line[:8]}

    def fails():
        raise RuntimeError

    def run_notebook(copy, values, out):
        cells = json.loads(copy.read_text(encoding="utf-8"))["cells"]
        own = next(c["source"] for c in cells if "parameters" in c["metadata"].get("tags", []))
        assert set(values) <= parameters.assigned(own)
        ran[copy.stem] = cells[-1]["id"]

    assert set(gpu.JOBS) == told
    monkeypatch.setitem(gpu.JOBS, "graph", fails)
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(records, "run_notebook", run_notebook)
    monkeypatch.setattr(utils, "pick_device", lambda: torch.device("mps"))
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    with pytest.raises(SystemExit, match=r"^failed: graph$"):
        gpu.main()
    assert ran == {
        "gpu-11_cost_of_a_step": "pipeline",
        "gpu-08_many_seeds": "seeds",
        "gpu-10_time_to_994": "points",
    }
