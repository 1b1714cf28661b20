"""What IAM is asked to allow is what the code calls: nothing is missing, nothing is more."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

import fsdray as fsd
from fsdray.backends.aws import policies, template
from fsdray.backends.aws.deploy import deploy
from fsdray.backends.aws.doctor import Level, Patient, examine
from fsdray.backends.aws.options import Options
from fsdray.backends.aws.stack import Stack
from fsdray.errors import SettingsError
from fsdray.settings import resolve
from fsdray.testing.emulator import Emulator
from tests.backends.aws import actions
from tests.backends.aws.actions import DEPLOYER, FUNCTION, USER, allowed, called, wildcards
from tests.backends.aws.conftest import Aws
from tests.deployed import Heard, deployed, using

LAMBDAS = {"logs:CreateLogStream", "logs:PutLogEvents"}
"""What Lambda itself does in the functions' name."""

UNNAMED = {
    "cloudformation:DescribeStacks",
    "lambda:GetAccountSettings",
    "lambda:ListFunctions",
    "logs:DescribeLogGroups",
    "s3:ListAllMyBuckets",
    "sns:ListTopics",
    "sqs:ListQueues",
}
"""Actions that know no resources (the Service Authorization Reference)."""

CLOUDFORMATIONS = {
    # What CloudFormation calls in the deployer's name for each type of resource: the permissions
    # that the handlers in its registry's schemas list, for the properties that the template sets.
    "AWS::CloudFormation::Stack": "cloudformation:CreateStack UpdateStack DeleteStack "
    "DescribeStacks",
    "AWS::IAM::Role": "iam:CreateRole GetRole UpdateRole UpdateRoleDescription DeleteRole "
    "PutRolePolicy GetRolePolicy DeleteRolePolicy AttachRolePolicy DetachRolePolicy "
    "PutRolePermissionsBoundary DeleteRolePermissionsBoundary TagRole UntagRole",
    "AWS::Lambda::Alias": "lambda:CreateAlias GetAlias UpdateAlias DeleteAlias",
    "AWS::Lambda::EventInvokeConfig": "lambda:PutFunctionEventInvokeConfig "
    "GetFunctionEventInvokeConfig UpdateFunctionEventInvokeConfig DeleteFunctionEventInvokeConfig",
    "AWS::Lambda::Function": "lambda:CreateFunction GetFunction GetFunctionConfiguration "
    "UpdateFunctionCode UpdateFunctionConfiguration DeleteFunction PutFunctionConcurrency "
    "DeleteFunctionConcurrency PutFunctionRecursionConfig GetFunctionRecursionConfig "
    "GetFunctionCodeSigningConfig GetRuntimeManagementConfig TagResource UntagResource ListTags "
    "iam:PassRole s3:GetObject",
    "AWS::Lambda::Version": "lambda:PublishVersion ListVersionsByFunction "
    "GetFunctionConfiguration DeleteFunction",
    "AWS::Logs::LogGroup": "logs:CreateLogGroup DeleteLogGroup DescribeLogGroups "
    "PutRetentionPolicy TagResource UntagResource ListTagsForResource",
    "AWS::S3::Bucket": "s3:CreateBucket DeleteBucket PutEncryptionConfiguration "
    "PutBucketOwnershipControls PutBucketPublicAccessBlock PutLifecycleConfiguration "
    "PutBucketTagging",
    "AWS::S3::BucketPolicy": "s3:PutBucketPolicy GetBucketPolicy DeleteBucketPolicy",
    "AWS::SNS::Subscription": "sns:Subscribe Unsubscribe GetSubscriptionAttributes "
    "SetSubscriptionAttributes ListSubscriptionsByTopic",
    "AWS::SNS::Topic": "sns:CreateTopic GetTopicAttributes SetTopicAttributes DeleteTopic "
    "TagResource UntagResource ListTagsForResource",
    "AWS::SQS::Queue": "sqs:CreateQueue GetQueueUrl GetQueueAttributes SetQueueAttributes "
    "DeleteQueue TagQueue UntagQueue ListQueueTags",
    "AWS::SQS::QueuePolicy": "sqs:SetQueueAttributes",
    # A directory bucket is a choice: the docs name what it needs.
    "AWS::S3Express::DirectoryBucket": "",
}

OPTIONS = Options(slots=201, extras=(), snapstart=False)


def planned() -> template.Plan:
    """A stack of two topics and three blocks of slots."""
    return template.plan(
        "own", OPTIONS, region="us-east-1", account="123456789012", partition="aws"
    )


class _Loader(yaml.SafeLoader):
    """Reads CloudFormation's short forms as ``{"Fn": value}``."""


def _short_form(loader: _Loader, suffix: str, node: Any) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return {suffix: loader.construct_scalar(node)}
    if isinstance(node, yaml.SequenceNode):
        return {suffix: loader.construct_sequence(node, deep=True)}
    return {suffix: loader.construct_mapping(node, deep=True)}


_Loader.add_multi_constructor("!", _short_form)


def loaded(text: str) -> dict[str, Any]:
    found = yaml.load(text, _Loader)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    """The template's resources, and those of its nested templates."""
    plan = planned()
    found: dict[str, Any] = {}
    for text in (plan.whole, *plan.nested.values()):
        found |= loaded(text)["Resources"]
    return found


def of_type(resources: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [each["Properties"] for each in resources.values() if each["Type"] == kind]


def role_statements(resources: dict[str, Any]) -> list[dict[str, Any]]:
    """What the functions may do, each choice of the template taken apart."""
    [role] = of_type(resources, "AWS::IAM::Role")
    [policy] = role["Policies"]
    statements = policy["PolicyDocument"]["Statement"]
    return [each for each in statements if "If" not in each]


def chosen_statements(resources: dict[str, Any]) -> list[dict[str, Any]]:
    """What they may do besides, where a deploy was told so."""
    [role] = of_type(resources, "AWS::IAM::Role")
    [policy] = role["Policies"]
    return [each["If"][1] for each in policy["PolicyDocument"]["Statement"] if "If" in each]


def test_functions_may_do_what_their_code_calls_and_nothing_else(resources: Any) -> None:
    policy = {"Statement": role_statements(resources)}
    assert allowed(policy) == (called(*FUNCTION) - {"s3express:CreateSession"}) | LAMBDAS
    assert wildcards(policy) == []


def test_what_a_deploy_may_add_is_for_what_it_was_told(resources: Any) -> None:
    chosen = {each["Sid"]: each for each in chosen_statements(resources)}
    assert set(chosen) == {"ExpressValues", "Secrets", "SecretParameters", "TopicKey", "Vpc"}
    # Lambda's own interfaces in a VPC: these actions know no resources, and are its own to call.
    assert wildcards({"Statement": list(chosen.values())}) == ["Vpc"]


def policy_of(name: str) -> dict[str, Any]:
    stack = planned().stack
    return policies.load(
        name, stack=stack.name, account=stack.account, region=stack.region, bucket=stack.bucket
    )


def test_a_session_may_do_what_it_calls_and_nothing_else() -> None:
    policy = policy_of("user")
    assert allowed(policy) == called(*USER) - {"s3express:CreateSession"}
    assert wildcards(policy) == ["KnowTheConcurrency"]


def test_a_deploy_may_do_what_it_and_cloudformation_call_and_nothing_else(resources: Any) -> None:
    needed = called(*DEPLOYER)
    for kind in {each["Type"] for each in resources.values()}:
        service = ""
        for name in CLOUDFORMATIONS[kind].split():
            service, _, name = name.rpartition(":") if ":" in name else (service, "", name)
            needed.add(f"{service}:{name}")
    assert allowed(policy_of("deployer")) == needed


@pytest.mark.parametrize("name", policies.NAMES)
def test_a_resource_is_named_wherever_it_has_a_name(name: str) -> None:
    for statement in policy_of(name)["Statement"]:
        assert not any("*" in action for action in statement["Action"]), statement["Sid"]
        if statement["Resource"] == ["*"]:
            assert set(statement["Action"]) <= UNNAMED, statement["Sid"]
        else:
            text = " ".join(statement["Resource"])
            assert "own" in text or "${aws:username}" in text, statement["Sid"]


def test_a_policy_fits_into_one_of_iams() -> None:
    # 6,144 characters without white space (IAM User Guide, "IAM and AWS STS quotas").
    for name in policies.NAMES:
        assert len(re.sub(r"\s", "", str(policy_of(name)))) < 6144


def test_queues_admit_our_topic_and_nobody_else(resources: Any) -> None:
    queues = of_type(resources, "AWS::SQS::Queue")
    found = of_type(resources, "AWS::SQS::QueuePolicy")
    assert len(found) == len(queues) == OPTIONS.slots
    for policy in found:
        [statement] = policy["PolicyDocument"]["Statement"]
        assert statement["Principal"] == {"Service": "sns.amazonaws.com"}
        assert statement["Action"] == "sqs:SendMessage"
        assert statement["Condition"] == {"ArnEquals": {"aws:SourceArn": {"Ref": "Topic"}}}
        [queue] = policy["Queues"]
        assert statement["Resource"] == {"GetAtt": f"{queue['Ref']}.Arn"}


def test_all_is_encrypted_and_nothing_public(resources: Any) -> None:
    assert all(queue["SqsManagedSseEnabled"] for queue in of_type(resources, "AWS::SQS::Queue"))
    [bucket] = of_type(resources, "AWS::S3::Bucket")
    assert bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    [policy] = of_type(resources, "AWS::S3::BucketPolicy")
    [statement] = policy["PolicyDocument"]["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": False}}


def test_only_lambda_takes_the_functions_role(resources: Any) -> None:
    [role] = of_type(resources, "AWS::IAM::Role")
    [statement] = role["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "lambda.amazonaws.com"}


def test_what_a_session_needs_is_asked_for_on_resources_of_the_stack() -> None:
    stack: Stack = planned().stack
    asked = policies.of_session(stack)
    assert {each for one in asked for each in one.actions} == allowed(policy_of("user"))
    resources = {one.resource for one in asked} - {"*"}
    assert not [resource for resource in resources if "*" in resource.removesuffix(":*")]
    assert f"arn:aws:s3:::{stack.bucket}/pool.json" in resources


@pytest.mark.parametrize(
    ("arn", "whose"),
    [
        ("arn:aws:iam::1:user/ada", "arn:aws:iam::1:user/ada"),
        ("arn:aws:sts::1:assumed-role/Dev/ada@x", "arn:aws:iam::1:role/Dev"),
        ("arn:aws-cn:sts::1:assumed-role/Dev/i-1", "arn:aws-cn:iam::1:role/Dev"),
    ],
)
def test_permissions_are_those_of_the_user_or_the_role(arn: str, whose: str) -> None:
    assert policies.principal(arn) == whose


def test_there_is_no_other_policy() -> None:
    with pytest.raises(SettingsError, match="user, deployer"):
        policies.load("root", stack="own", account="1", region="us-east-1", bucket="b")


def test_actions_are_read_off_the_source() -> None:
    assert actions.called("stack") == {"cloudformation:DescribeStacks"}
    assert {"s3:PutObject", "s3:AbortMultipartUpload"} <= actions.called("objects")
    assert "lambda:InvokeFunction" in actions.called("functions")


def test_a_deploy_asks_for_what_is_read_off_and_for_nothing_else(emulator: Emulator) -> None:
    before = len(emulator.requests())
    with deployed(emulator, "asked", slots=2, memory=(512,)) as variables, using(variables):
        patient = Patient.of_settings(resolve({}))
        assert [each.text for each in examine(patient) if each.level is not Level.OK] == []
        deploy(resolve({}), {"slots": 3}, Heard(), is_bare=True)
    # The Lambda host's lines tell what CloudFormation asked for.
    lines = [each for each in emulator.requests()[before:] if each["service"] != "lambda"]
    asked = actions.logged(lines, "other")
    assert asked <= called(*DEPLOYER)
    assert {"cloudformation:ExecuteChangeSet", "s3:PutObject", "sns:ListTopics"} <= asked


def test_what_functions_and_sessions_ask_for_is_read_off(aws: Aws) -> None:
    # Of all tests before this one too; the rest is looked at when the emulator ends.
    before = len(aws.emulator.requests())
    fsd.init("aws", memory=512)
    try:
        found = fsd.get(fsd.remote(len).remote(fsd.put(bytes(1_000_000))))
        assert found == 1_000_000
        assert fsd.get(meet.remote()) == [3, 3, 3]
    finally:
        fsd.shutdown()
    lines = aws.emulator.requests()[before:]
    actions.check_logged(aws.emulator.requests())
    assert {"s3:GetObject", "sqs:ReceiveMessage", "sns:Publish"} <= actions.logged(
        lines, "function"
    )
    assert {"s3:PutObject", "s3:DeleteObject", "s3:ListBucket"} <= actions.logged(lines, "driver")
    with pytest.raises(AssertionError, match="s3:DeleteBucket"):
        actions.check_logged([*lines, lines[-1] | {"operation": "DeleteBucket", "by": "driver"}])


@fsd.remote(world_size=3, channel="queue")
def meet() -> int:
    return int(fsd.collective.world().allreduce(1))
