"""What may be asked of the engine: contradictions are refused by the name of the field."""

import pickle

import numpy as np
import pytest

from longcat.serve import ConstraintSpec, EngineConfig, Request, SamplingParams, decode


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("presence_penalty", 2.5),
        ("frequency_penalty", -3.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 5e-324),  # 0 in float32
        ("repetition_penalty", 1e300),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: float("nan")}),
        ("logit_bias", {1: 1e300}),  # infinite in float32
        ("logit_bias", {1: -3e38}),  # which a logit of the same sign makes infinite
        ("logprobs", -1),
        ("prompt_logprobs", -1),
        ("stop", ("",)),
        ("stop_token_ids", (-3,)),
        ("min_tokens", 129),
        ("acceptance", "typical"),
        ("temperature", "hot"),
        ("top_k", 1.5),
        ("top_k", 2**63),  # no int64
        ("temperature", 10**400),  # no float
        ("top_p", None),
        ("min_p", True),
        ("max_tokens", "5"),
        ("max_tokens", 2.5),
        ("seed", 1.5),
        ("frequency_penalty", "high"),
        ("repetition_penalty", None),
        ("logit_bias", [1]),
        ("logit_bias", {"a": 1.0}),
        ("logprobs", True),
        ("stop", "END"),
        ("stop", (5,)),
        ("stop_token_ids", 5),
        ("stop_token_ids", ("a",)),
        ("min_tokens", "2"),
        ("ignore_eos", "no"),
        ("speculative", "yes"),
        ("constraint", "json"),
    ],
)
def test_a_field_outside_its_range_is_named(field, value):
    with pytest.raises(ValueError, match=rf"SamplingParams: {field} must .*; got "):
        SamplingParams(**{field: value})


def test_numbers_of_numpy_are_numbers():
    params = SamplingParams(temperature=np.float64(0.5), top_k=np.int64(3), seed=np.uint64(7))
    assert (params.top_k, params.greedy) == (3, False)


def test_a_constraint_is_exactly_one_thing():
    with pytest.raises(ValueError, match="exactly one"):
        ConstraintSpec()
    with pytest.raises(ValueError, match="got regex, json_object"):
        ConstraintSpec(regex="a+", json_object=True)
    with pytest.raises(ValueError, match="choice must not be empty"):
        ConstraintSpec(choice=("yes", ""))


def test_a_request_needs_a_prompt_and_a_name():
    params = SamplingParams()
    with pytest.raises(ValueError, match="prompt_ids"):
        Request(request_id="a", prompt_ids=(), params=params)
    with pytest.raises(ValueError, match="request_id"):
        Request(request_id="", prompt_ids=(1,), params=params)
    with pytest.raises(ValueError, match="choice"):
        Request(request_id="a", prompt_ids=(1,), params=params, choice=-1)


def test_a_request_travels_between_processes():
    params = SamplingParams(logit_bias={3: 1.0}, constraint=ConstraintSpec(choice=("yes", "no")))
    request = Request(request_id="a", prompt_ids=(1, 2), params=params)
    assert pickle.loads(pickle.dumps(request)) == request


@pytest.mark.parametrize("field", ["page_size", "num_pages", "max_running", "token_budget"])
@pytest.mark.parametrize("value", [0, 1.5, "4"])
def test_an_engine_has_room_for_something(field, value):
    with pytest.raises(ValueError, match=f"{field} must be a whole number from 1 on"):
        EngineConfig(**{field: value})


def test_pages_are_of_64_tokens_on_a_gpu_and_of_16_on_a_cpu_for_as_many_tokens():
    assert EngineConfig().pages_on("cpu") == (4096, 16)
    assert EngineConfig().pages_on("cuda") == (1024, 64)
    assert EngineConfig(page_size=7).pages_on("cuda") == (9363, 7)
    assert EngineConfig(page_size=10**6).pages_on("cpu") == (1, 10**6)
    assert EngineConfig(num_pages=5).pages_on("cuda") == (5, 64)


def test_an_engine_drafts_at_most_three_tokens():
    for count in (4, -1, 1.5, "1"):
        with pytest.raises(ValueError, match="num_drafts"):
            EngineConfig(num_drafts=count)


def test_decode_refuses_what_only_the_engine_honours(markov):
    with pytest.raises(ValueError, match=r"stop, min_tokens .*Engine"):
        decode(markov(), [1], SamplingParams(stop=("x",), min_tokens=1))
