"""AWS on this machine: S3, SQS, SNS, CloudFormation, IAM, STS and CloudWatch Logs beside Lambda.

`Emulator` runs ministack for all but Lambda, which is a `fsdray.testing.LambdaHost`: real AWS
clients reach both through environment variables, and nothing that uses them knows the difference.
No AWS code of fsdray lives here.

Modules: `emulator` starts and ends both; `packages` installs ministack apart from everything else,
since it pins its botocore. In ministack's process, `guest` serves; `access` writes down each
request; `mirror` has the functions of CloudFormation's stacks made in the Lambda host, and `amend`
mends what ministack does otherwise than AWS.

Where it differs from AWS, beside what `fsdray.testing.lambda_host` says:

- permissions of callers are not checked; of policies, only those of queues are;
- limits of size and rate of SQS and SNS are not kept;
- a filter policy holds at once;
- its speed says nothing about AWS's.
"""

from __future__ import annotations

from fsdray.testing.emulator.emulator import Emulator

__all__ = ["Emulator"]
