import pytest

import polytask as pt
from polytask.balancing import Balancer
from polytask.studies.compare import plan
from polytask.studies.methods import GROUPS, companions, read_methods, sweep, weight_vectors
from polytask.studies.spec import find_class, our_classes


def balancer(made, method):
    return made.methods[method]["trainer"]["balancer"]


def short(path):
    return path.rsplit(".", 1)[-1]


def test_a_list_means_the_base_with_that_balancer_or_schedule(config):
    made = plan(config | {"methods": ["MGDA", "AlternateBatches", {"CAGrad": {"c": 0.8}}]})
    assert find_class(balancer(made, "MGDA")["class_path"]) is pt.aggregation.MGDA
    assert balancer(made, "CAGrad")["init_args"] == {"c": 0.8}
    schedule = made.methods["AlternateBatches"]["trainer"]["schedule"]
    assert find_class(schedule["class_path"]) is pt.schedules.AlternateBatches
    for name, changed in (("MGDA", "balancer"), ("AlternateBatches", "schedule")):
        # all else is the base's, as joint training's is
        same, joint = (dict(made.methods[method]["trainer"]) for method in (name, "joint"))
        assert same.pop(changed) != joint.pop(changed)
        kept = {key: value for key, value in same.items() if key not in ("balancer", "schedule")}
        assert kept == {key: joint[key] for key in kept}


def test_listed_methods_stand_beside_single_task_the_sum_and_weights(config):
    made = plan(config | {"methods": ["MGDA", "UPGrad"], "seeds": [0, 1]})
    assert list(made.methods)[:4] == ["single-task", "joint", "MGDA", "UPGrad"] and made.baseline == "single-task"
    assert made.sweep == ["joint", *list(made.methods)[4:]] and len(made.sweep) == 5
    assert short(made.methods["single-task"]["model"]["class_path"]) == "SingleTask"
    arguments = made.methods["single-task"]["model"]["init_args"]
    assert arguments["heads"].keys() == {"circle", "rhombus"}
    assert arguments["trunk"] == made.methods["joint"]["model"]["init_args"]["trunk"]
    assert balancer(made, "joint")["init_args"]["weights"] is None
    for point in made.sweep[1:]:
        weights = balancer(made, point)["init_args"]["weights"]
        assert sum(weights.values()) == pytest.approx(2) and set(weights) == {"circle", "rhombus"}
    budgets = {(c["epochs"], c["trainer"]["batch_size"]) for c in made.methods.values()}
    assert len(budgets) == 1


@pytest.mark.parametrize(("methods", "weights", "vectors"), [
    (["MGDA"], None, 5), (["scalarization"], None, 10), ("MGDA", 2, 2), ({"own": {}}, 3, 3),
])  # fmt: skip
def test_the_sweep_is_given_as_many_vectors_as_there_are_methods(config, methods, weights, vectors):
    made = plan(config | {"methods": methods} | ({"weights": weights} if weights else {}))
    listed = [name for name in made.methods if name not in ("single-task", *made.sweep)]
    # the plain sum is one of an odd number of vectors, and then not trained twice
    assert len(made.sweep) - 1 + (vectors % 2) == vectors
    assert weights or vectors == max(5, len(listed))


def test_whatever_the_base_is_trained_with_the_sum_and_the_weights_are_plain(config):
    config["trainer"] |= {"balancer": {"class_path": "MGDA", "init_args": {"normalization": "l2"}}}
    config["trainer"] |= {"schedule": "AlternateBatches"}
    made = plan(config | {"methods": ["FAMO"]})
    for method in ("single-task", *made.sweep):
        assert short(balancer(made, method)["class_path"]) == "Linear"
        assert short(made.methods[method]["trainer"]["schedule"]["class_path"]) == "Joint"
    assert short(made.methods["FAMO"]["trainer"]["schedule"]["class_path"]) == "AlternateBatches"
    assert balancer(plan(config | {"methods": ["MGDA"]}), "MGDA")["init_args"] == {"normalization": "l2"}


def test_groups_hold_every_balancer_that_needs_no_settings():
    groups = {word: set(read_methods([word])) for word in GROUPS}
    assert groups["all"] == groups["aggregation"] | groups["scalarization"]
    assert not groups["aggregation"] & groups["scalarization"]
    every = {name for name, cls in our_classes().items() if issubclass(cls, Balancer)}
    # the sum itself twice, and those that need a method or bounds
    assert every - groups["all"] == {"Linear", "Sum", "TorchJD", "EpsilonConstraint"}
    # a setting given by name is kept where the group holds the method too
    settings = read_methods(["all", {"CAGrad": {"c": 0.8}}])
    assert settings["CAGrad"]["trainer"]["balancer"]["init_args"] == {"c": 0.8} and set(settings) == groups["all"]


def test_a_mapping_is_taken_as_it_is(study):
    made = plan(study)
    assert list(made.methods) == ["single-task", "ATE-SG 1/1"] and made.sweep == []
    study["methods"] = {"MGDA": None, "CAGrad": {"epochs": 3}, "tuned": {"epochs": 4}, "single": None}
    made = plan(study | {"baseline": "single"})
    assert short(balancer(made, "MGDA")["class_path"]) == "MGDA"
    assert short(balancer(made, "CAGrad")["class_path"]) == "CAGrad"
    assert made.methods["CAGrad"]["epochs"] == 3 and not made.methods["tuned"]["trainer"].get("balancer")


def test_a_list_may_name_the_files_own_methods(study):
    study["methods"]["slow"] = {"epochs": 7}
    made = plan(study, methods=["slow", "MGDA"])
    assert list(made.methods)[:4] == ["joint", "single-task", "slow", "MGDA"]
    assert made.methods["slow"]["epochs"] == 7 and "ATE-SG 1/1" not in made.methods


def test_methods_of_the_users_own_take_the_place_of_those_beside(config):
    own = {"Single Task": {"model": {"class_path": "SingleTask"}, "epochs": 9}}
    made = plan(config | {"methods": [own, "MGDA"]})
    assert list(made.methods)[:3] == ["joint", "Single Task", "MGDA"] and made.baseline == "Single Task"
    assert companions(config, {"single-task": {}, "Joint": {}}) == {}


@pytest.mark.parametrize("tasks", [2, 3, 10, 40])
def test_weights_sum_to_the_number_of_tasks(tasks):
    vectors = weight_vectors(tasks, 12)
    assert len(set(vectors)) == 12 and all(len(vector) == tasks for vector in vectors)
    for vector in vectors:
        assert sum(vector) == pytest.approx(tasks, abs=1e-9) and min(vector) > 0
    names = sweep([str(k) for k in range(tasks)], ["penalty"], 12)
    assert len(names) == 12 and len(set(names)) == 12
    for change, vector in zip(names.values(), vectors, strict=True):
        weights = change["trainer"]["balancer"]["init_args"]["weights"]
        assert weights.pop("penalty") == 1.0 and tuple(weights.values()) == vector


def test_two_tasks_are_swept_evenly_and_more_keep_their_first_vectors():
    assert weight_vectors(2, 9)[0] == (0.2, 1.8) and weight_vectors(2, 9)[4] == (1.0, 1.0)
    assert weight_vectors(2, 6) == [vector[::-1] for vector in weight_vectors(2, 6)[::-1]]
    assert weight_vectors(5, 4) == weight_vectors(5, 9)[:4]
    assert sweep(["alone"], [], 3) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["MGAD"]}, "unknown method `MGAD`: did you mean `MGDA`"),
        ({"methods": ["al"]}, "unknown method `al`: did you mean `all`"),
        ({"methods": ["MGDA", "MGDA"]}, "`methods` must be different, found `MGDA` twice"),
        ({"methods": [3]}, "an item of `methods` must be a name or .*found 3"),
        ({"methods": [{"MGDA": {}, "FAMO": {}}]}, "an item of `methods` must be a name or"),
        ({"methods": 3}, "`methods` must be a mapping or a list, found 3"),
        ({"methods": []}, "must have `methods`"),
        ({"methods": [{"CAGrad": {"d": 1}}]}, "method `CAGrad`: unknown key `trainer.balancer.init_args.d`"),
        ({"methods": [{"CAGrad": {"c": -1}}]}, "method `CAGrad`: `c` must be at least 0"),
        ({"methods": [{"CAGrad": 3}]}, "method `CAGrad`: it must be a mapping of what it changes, found 3"),
        ({"methods": ["MGDA"], "weights": 0}, "`weights` must be at least 1, found 0"),
        ({"methods": ["MGDA"], "baseline": "singl"}, "`baseline` must name a method, found `singl`"),
        ({"methods": ["MGDA"], "weigths": 3}, "unknown key `weigths`: did you mean `weights`"),
    ],
)
def test_a_wrong_list_is_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        plan(config | change)


def test_a_balancer_that_needs_settings_is_refused_without(config):
    with pytest.raises((ValueError, TypeError), match=r"method `TorchJD`: `aggregator` must be .* of TorchJD"):
        plan(config | {"methods": ["TorchJD"]})


def test_no_setting_for_all_takes_a_methods_name_in_vain(config):
    with pytest.raises(ValueError, match=r"method `MGDA`: it must keep its own balancer, found `trainer.balancer` set"):
        plan(config | {"methods": ["MGDA"]}, {"trainer.balancer": "FAMO"})


def test_a_network_without_a_single_task_twin_needs_one_given(config):
    config["model"] = {"class_path": "Partitioned", "init_args": {"module": "x", "shared": "trunk"}}
    with pytest.raises(ValueError, match=r"`model` must be HardSharing for its single-task baseline .* `single-task`"):
        plan(config | {"methods": ["MGDA"]})
