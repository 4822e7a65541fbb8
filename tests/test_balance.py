"""Automatic weights: what they hold, what they pass over, and that a resumed training goes on with the same."""

import copy

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("pycocotools")

from cls2det.distill import ClassifierSettings, GradientBalance
from cls2det.distill.balance import gradient_ratios
from cls2det.settings import BalanceSettings
from cls2det.training.detector import DetectorTraining
from cls2det.training.settings import Optim, Run
from training_cases import batch, distill, logged, training, weights_in

RUN = Run(device="cpu", cache=True, checkpoint_every=2, log_every=1, ratio_every=1)


def losses(strength=4.0):
    """A detection loss and two terms, with gradients of known norm at two places."""
    head, maps = torch.ones(4, requires_grad=True), torch.ones(9, requires_grad=True)
    detection = (head.sum() + maps.sum()) * 2  # norms 4 and 6
    return detection, {"kd_cls": strength * head.sum(), "fkd": 0.5 * maps.sum()}, [head], [maps]


def test_each_term_is_held_to_the_share():
    detection, terms, *places = losses()
    factors = GradientBalance(0.3)(detection, terms, *places)
    assert factors["kd_cls"].item() == pytest.approx(0.3 / 2) and factors["fkd"].item() == pytest.approx(0.3 / 0.25)
    scaled = {name: factors[name] * term for name, term in terms.items()}
    ratios = gradient_ratios(detection, scaled, *places)
    assert ratios["kd_cls"].item() == pytest.approx(0.3) and ratios["fkd"].item() == pytest.approx(0.3)
    assert not any(factor.requires_grad for factor in factors.values())


def test_ratios_are_smoothed_and_measured_every_few_calls():
    balance = GradientBalance(0.3, every=2, smoothing=0.75)

    def kd_cls(strength):
        detection, terms, *places = losses(strength)
        return balance(detection, terms, *places)["kd_cls"].item()

    assert kd_cls(4.0) == pytest.approx(0.3 / 2)
    assert kd_cls(64.0) == pytest.approx(0.3 / 2)  # not measured
    assert kd_cls(64.0) == pytest.approx(0.3 / (2 * 16**0.25))  # a quarter of the way, on a logarithmic scale
    assert kd_cls(4.0) == pytest.approx(0.3 / (2 * 16**0.25))


def test_factors_are_bounded_and_what_cannot_be_measured_is_passed_over():
    balance = GradientBalance(0.3, every=1, bound=10.0)
    assert balance(*losses(1e-6)[:2], *losses()[2:])["kd_cls"] == 1.0  # of another graph: no gradient
    detection, terms, *places = losses(1e-6)
    assert balance(detection, terms, *places)["kd_cls"] == 10.0
    balance = GradientBalance(0.3, every=1, bound=10.0)
    assert balance(*_nan(losses(), torch.nan))["kd_cls"] == 1.0
    detection, terms, *places = losses()
    assert balance(detection, terms, *places)["kd_cls"].item() == pytest.approx(0.15)
    assert balance(*_nan(losses(), torch.inf))["kd_cls"].item() == pytest.approx(0.15)
    assert balance(*_nan(losses(), 0.0))["kd_cls"].item() == pytest.approx(0.15)
    for wrong in ({"share": 0.0}, {"every": 0}, {"smoothing": 1.0}, {"bound": 0.5}):
        with pytest.raises(ValueError, match="a balance needs a share above 0"):
            GradientBalance(**wrong)
    with pytest.raises(ValueError, match=r"balance\.share must be above 0, got 0"):
        BalanceSettings(share=0)


def _nan(case, strength):
    detection, terms, *places = case
    return detection, {name: strength * term for name, term in terms.items()}, *places


def test_the_state_is_saved_and_loaded(tmp_path):
    balance, other = GradientBalance(every=3), GradientBalance(every=3)
    detection, terms, *places = losses()
    balance(detection, terms, *places)
    torch.save(balance.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for strength in (8.0, 9.0, 10.0, 11.0):
        detection, terms, *places = losses(strength)
        ours, theirs = balance(detection, terms, *places), other(detection, terms, *places)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not list(balance.parameters())
    assert copy.deepcopy(balance).calls == 5


def test_weights_of_the_settings_do_not_matter_and_warm_up_does(scenes, teacher_weights):
    """The same terms come of weights 0.1 and 10; half way through the warm-up they are half as large."""
    results = {}
    for weight, warmup_steps in ((0.1, 0), (10.0, 0), (10.0, 4)):
        settings = ClassifierSettings(kd_cls_weight=weight, kd_loc_weight=0, loc_weight=weight, warmup_steps=warmup_steps)
        model = training(teacher_weights, settings)
        model.distillation.balance = GradientBalance(0.3)
        outputs = model.losses(*batch(scenes))
        results[weight, warmup_steps] = outputs[1]
        if warmup_steps:
            model.distillation.balance = GradientBalance(0.3)
            with model.tap:
                detection = sum(model.detector(*_floats(scenes)).values())
            places = [model.tap.outputs, model.tap.maps]
            ours = model.distillation(model.tap.student_outputs, 2, detection, places)
            ratios = gradient_ratios(detection, ours, *places)
            assert all(ratio.item() == pytest.approx(0.15, rel=1e-3) for ratio in ratios.values())
    for name in ("kd_cls", "loc"):
        torch.testing.assert_close(results[0.1, 0][name], results[10.0, 0][name], rtol=1e-3, atol=0)
        assert results[10.0, 4][name] == 0
    with pytest.raises(ValueError, match="give detection and places"):
        model.distillation(model.tap.student_outputs, 2)


def _floats(scenes):
    images, targets = batch(scenes)
    return [image / 255 for image in images], targets


class Stop(Exception):
    pass


def test_a_broken_run_goes_on_with_the_same_weights(scenes, teacher_weights, tmp_path, monkeypatch):
    training_step = DetectorTraining.training_step

    def run(folder, stop_at=None):
        def watched(self, batch, index):
            if self.global_step == stop_at:
                raise Stop
            return training_step(self, batch, index)

        monkeypatch.setattr(DetectorTraining, "training_step", watched)
        options = {"optim": Optim(steps=6, batch_size=2), "run": RUN, "term_weights": "auto"}
        distill(scenes, tmp_path / folder, teacher_weights, balance=BalanceSettings(every=3), **options)
        return weights_in(tmp_path / folder / "weights.pt")

    unbroken = run("unbroken")
    with pytest.raises(Stop):
        run("broken", stop_at=5)
    resumed = run("broken")
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    rows = logged(tmp_path / "broken")
    assert len(rows) == 6
    for term in ("kd_cls", "kd_loc", "loc"):
        assert float(rows[0][f"gradient_ratio/{term}"]) == pytest.approx(0.3, rel=1e-3)  # just measured
        weights = [row[f"auto_weight/{term}"] for row in rows]
        assert weights[0] == weights[2] != weights[3] == weights[5]  # measured at steps 0 and 3


def test_a_detector_without_maps_has_no_ratio_there():
    detection, terms, head, _ = losses()
    assert gradient_ratios(detection, {"none": 0.0 * terms["fkd"]}, head, [])["none"] == 0
