"""The templates: valid for CloudFormation, within its limits, with no more rights than needed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fsdray.backends.aws import template
from fsdray.backends.aws.options import LADDER, Options
from fsdray.backends.aws.template import Plan, expand
from fsdray.errors import SettingsError

FULL = Options(
    slots=450,
    python="3.13",
    snapstart=True,
    reserved=10,
    subnets=("subnet-0123456789abcdef0",),
    security_groups=("sg-0123456789abcdef0",),
    boundary="arn:aws:iam::123456789012:policy/boundary",
    policies=("arn:aws:iam::123456789012:policy/data",),
    environment={"ONE": 'a "quoted": {one}', "TWO": "#"},
    secrets={
        "TOKEN": "arn:aws:secretsmanager:eu-west-1:123456789012:secret:token-AbCdEf",
        "KEY": "arn:aws:ssm:eu-west-1:123456789012:parameter/key",
    },
    topic_key="arn:aws:kms:eu-west-1:123456789012:key/0123",
    express_zone="euw1-az1",
)


IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/fsdray:1.2"


def plan(options: Options) -> Plan:
    return template.plan(
        "fsdray", options, region="eu-west-1", account="123456789012", partition="aws"
    )


def read(text: str) -> dict[str, Any]:
    """A template as CloudFormation reads it: !Ref and !Sub are mappings."""
    from cfnlint.decode import cfn_yaml

    return dict(cfn_yaml.loads(text))


@pytest.fixture(autouse=True)
def _has_linter() -> None:
    pytest.importorskip("cfnlint", reason="it is in fsdray's extra 'test'")


def test_cfn_lint_passes_on_what_is_deployed(tmp_path: Path) -> None:
    made, small = plan(FULL), plan(Options(slots=2, memory=(512,)))
    texts = {"full": made.template("0123456789abcdef"), "bare": made.bare, "small": small.whole}
    # With the parameters' values, where the linter knows what a function of an image may not have.
    texts["image"] = small.whole.replace(
        'Default: ""\n    Description: URI', f"Default: {IMAGE}\n    Description: URI"
    )
    assert IMAGE in texts["image"]
    for name, text in (texts | {"slots": small.nested["-0.yaml"]}).items():
        (tmp_path / f"{name}.yaml").write_text(text)
    # A file as it stands is a stack of one slot.
    files = [Path(template.__file__).with_name(name) for name in ("stack.yaml", "slots.yaml")]
    # W2001, W8001: the first step of a deploy has no use for most parameters. W1033: a list that
    # is empty where its condition does not hold.
    ignored = ["--ignore-checks", "W2001", "W8001", "W1033"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from cfnlint.runner import main; main()",
            *ignored,
            "--",
            *map(str, files),
            *tmp_path.iterdir(),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_stacks_keep_the_quotas_of_cloudformation() -> None:
    made = plan(Options(slots=1000, memory=tuple(range(128, 128 + 16))))
    assert len(made.nested) == 10
    for text in (made.whole, *made.nested.values()):
        assert len(list(template.named(text, {"HasSnapStart", "HasExpress"}))) <= 500
        assert len(text) <= 1_000_000  # in S3
    assert len(made.bare.encode()) <= 51_200  # in a request
    assert all(len(value) <= 4096 for value in made.parameters("code/x.zip").values())


def test_a_stack_has_what_its_options_say() -> None:
    made = plan(FULL)
    kinds = Counter(kind for _, kind in made.resources())
    assert kinds["AWS::SQS::Queue"] == kinds["AWS::SQS::QueuePolicy"] == 450
    assert kinds["AWS::SNS::Subscription"] == 450
    assert kinds["AWS::SNS::Topic"] == len(made.stack.topics) == 3
    assert kinds["AWS::Lambda::Function"] == kinds["AWS::Lambda::Alias"] == len(LADDER)
    assert made.stack.functions[1769] == "fsdray-1769:live"
    assert kinds["AWS::S3Express::DirectoryBucket"] == 1
    plain = Counter(kind for _, kind in plan(Options()).resources())
    assert not plain["AWS::Lambda::Version"]
    assert not plain["AWS::S3Express::DirectoryBucket"]


def test_slots_subscribe_to_the_topic_that_serves_them() -> None:
    made = plan(Options(slots=450))
    whole = read(made.whole)["Resources"]
    for block, text in enumerate(made.nested.values()):
        topic = whole[f"Slots{block}"]["Properties"]["Parameters"]["Topic"]
        assert topic == {"Ref": f"Topic{block * 100 // 200}"}
        resources = read(text)["Resources"]
        for slot in range(block * 100, min(450, block * 100 + 100)):
            subscription = resources[f"Subscription{slot:04d}"]["Properties"]
            assert subscription["FilterPolicy"] == {"to": [f"{slot:04d}"]}
            assert subscription["RawMessageDelivery"] is True
            queue = resources[f"Queue{slot:04d}"]["Properties"]
            assert queue["QueueName"] == {"Fn::Sub": f"${{Stack}}-slot-{slot:04d}"}


def statements(role: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a role's own policies, with what conditions would take away."""
    found = []
    for policy in role["Properties"]["Policies"]:
        for each in policy["PolicyDocument"]["Statement"]:
            found.append(each["Fn::If"][1] if "Fn::If" in each else each)
    return found


def test_the_functions_role_names_what_it_may_touch() -> None:
    role = read(plan(FULL).whole)["Resources"]["Role"]
    sids = [each["Sid"] for each in statements(role)]
    assert len(sids) == len(set(sids))
    for each in statements(role):
        assert each["Effect"] == "Allow"
        actions = each["Action"] if isinstance(each["Action"], list) else [each["Action"]]
        assert not any("*" in action for action in actions)
        # EC2 knows no resources for these; queues are too many for a policy, and bear our name.
        if each["Sid"] == "Vpc":
            continue
        text = json.dumps(each["Resource"])
        assert text != '"*"'
        assert re.findall(r"[^/]\*", text) in ([], ["-*"]) or each["Sid"] == "SendAndReceive"


def test_a_queue_admits_its_own_topic_and_nobody_else() -> None:
    resources = read(plan(Options(slots=2)).nested["-0.yaml"])["Resources"]
    policy = resources["Policy0001"]["Properties"]
    assert policy["Queues"] == [{"Ref": "Queue0001"}]
    (statement,) = policy["PolicyDocument"]["Statement"]
    assert statement == {
        "Sid": "OurTopicAlone",
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": {"Fn::GetAtt": ["Queue0001", "Arn"]},
        "Condition": {"ArnEquals": {"aws:SourceArn": {"Ref": "Topic"}}},
    }
    assert resources["Queue0001"]["Properties"]["SqsManagedSseEnabled"] is True


def test_the_bucket_is_private_encrypted_and_speaks_tls() -> None:
    made = plan(Options())
    for text in (made.bare, made.whole):
        resources = read(text)["Resources"]
        bucket = resources["Bucket"]["Properties"]
        assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
        assert bucket["BucketEncryption"]
        (rule,) = resources["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
        assert rule["Effect"] == "Deny"
        assert rule["Condition"] == {"Bool": {"aws:SecureTransport": False}}


def test_a_release_is_new_where_anything_is() -> None:
    def release(options: Options, code: str = "code/1.zip") -> str:
        return plan(options).parameters(code)["Release"]

    base = Options(python="3.12", architecture="arm64")
    assert release(base) == release(Options(python="3.12", architecture="arm64"))
    others = [
        release(base, "code/2.zip"),
        release(Options(python="3.13", architecture="arm64")),
        release(Options(python="3.12", architecture="arm64", slots=65)),
        release(Options(python="3.12", architecture="arm64", environment={"ONE": "1"})),
        release(Options(python="3.12", architecture="arm64", log_days=30)),
    ]
    assert len({release(base), *others}) == 6


def test_options_survive_their_stack_but_not_what_the_machine_decides() -> None:
    there = {"python": FULL.python, "architecture": FULL.architecture}
    assert Options.load(FULL.dump(), there) == FULL
    assert Options.load(FULL.dump(), there | {"slots": 7}).slots == 7
    plain = Options(python="3.13", architecture="arm64")
    assert plain.dump() == "{}"
    assert Options.load(plain.dump()) == Options()
    assert Options.load('{"of a later fsdray": 1}') == Options()


def test_code_is_a_package_or_an_image() -> None:
    options = Options(image=IMAGE)
    made = plan(options)
    function = read(made.whole)["Resources"]["Function1769"]["Properties"]
    nothing = {"Ref": "AWS::NoValue"}
    assert function["PackageType"] == {"Fn::If": ["HasImage", "Image", "Zip"]}
    assert function["Runtime"] == {"Fn::If": ["HasImage", nothing, {"Ref": "Runtime"}]}
    assert function["Handler"]["Fn::If"][:2] == ["HasImage", nothing]
    image, package = function["Code"]["Fn::If"][1:]
    assert image == {"ImageUri": {"Ref": "Image"}}
    assert set(package) == {"S3Bucket", "S3Key"}
    assert made.parameters("")["Image"] == made.stack.image == IMAGE
    assert plan(Options()).parameters("code/x.zip")["Image"] == ""
    assert Options.load(options.dump()) == options
    digest = Options(image=f"{IMAGE.rpartition(':')[0]}@sha256:{'0' * 64}")
    assert plan(digest).parameters("")["Release"] != made.parameters("")["Release"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"requirements": ("tool",)}, "requirements cannot be given with an image: install them"),
        ({"extras": ()}, "extras cannot be given with an image"),
        ({"snapstart": True, "python": "3.13"}, "snapstart cannot be given with an image"),
        ({"image": "docker.io/library/python:3.13"}, "give the URI of an image in ECR"),
        ({"image": IMAGE.rpartition(":")[0]}, "with its tag or digest"),
    ],
)
def test_an_image_is_refused_with_what_only_a_package_can_have(
    more: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        Options(**({"image": IMAGE} | more))


def test_markers_repeat_lines_and_nest() -> None:
    text = "a\n# for each x: X\nX {\n  # for each y: Y yy\n  X=Y yy\n  # end\n}\n# end\nz\n"
    made = expand(text, {"x": [("1",), ("2",)], "y": [("p", "q"), ("r", "s")]})
    assert made == "a\n1 {\n  1=p q\n  1=r s\n}\n2 {\n  2=p q\n  2=r s\n}\nz\n"
    assert expand(text, {"x": [], "y": []}) == "a\nz\n"
