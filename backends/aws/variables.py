"""Secrets that functions find in variables: read when an environment starts, and kept nowhere.

A stack names them by ARN, of Secrets Manager or of Systems Manager's parameters (`options`).
"""

from __future__ import annotations

import json
import os

from fsdray.backends.aws import border

VARIABLE = "FSDRAY_SECRETS"


def read_secrets(region: str) -> None:
    """Set the variables that `VARIABLE` names, a JSON object of names and ARNs; it blocks.

    Raises
    ------
    ServiceError : one cannot be read, or is binary.
    """
    named = json.loads(os.environ.get(VARIABLE) or "{}")
    if not named:
        return
    import boto3

    for name, arn in named.items():
        with border.crossing(f"reading the secret {arn}"):
            if arn.split(":")[2] == "ssm":
                client = boto3.client("ssm", region_name=region)
                told = client.get_parameter(Name=arn, WithDecryption=True)
                os.environ[name] = told["Parameter"]["Value"]
            else:
                client = boto3.client("secretsmanager", region_name=region)
                os.environ[name] = client.get_secret_value(SecretId=arn)["SecretString"]
