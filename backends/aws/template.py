"""The templates of a stack as CloudFormation is given them, made from the files beside this one.

Here are only texts and values; `deploy` hands them over.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from fsdray._version import __version__
from fsdray.backends.aws.options import Options
from fsdray.backends.aws.stack import Stack
from fsdray.services import MessageLimits

BLOCK = 100  # slots of a nested stack: three resources each, of the 500 that a stack may have
_EACH = re.compile(r"\s*# for each (\w+): (.+)")
_END = re.compile(r"\s*# end")
_CUT = re.compile(r"\n  # ---- .* ----\n")
_VERSION = re.compile(r"(Version\d+)New")
_NAMED = re.compile(r"\n  (\w+):\n    Type: (\S+)\n(?:    Condition: (\w+)\n)?")


@dataclass(frozen=True)
class Plan:
    """All that a deploy would hand over.

    Parameters
    ----------
    stack : what the stack would say of itself.
    bare : the template of its bucket alone. whole : of all of it.
    nested : the nested templates, by what their keys end with.
    options : what it is deployed with.
    """

    stack: Stack
    bare: str
    whole: str
    nested: Mapping[str, str]
    options: Options

    def parameters(self, code: str) -> dict[str, str]:
        """The template's parameters, for code at a key of the bucket, which says what is in it.

        It is ``""`` for code that is an image.
        """
        options = self.options
        secrets = {arn: ":ssm:" in arn for arn in options.secrets.values()}
        known = {
            "Stack": self.stack.dump(),
            "Options": options.dump(),
            "CodeKey": code,
            "Image": options.image,
            "SlotsKey": self.slots_key,
            "Runtime": f"python{options.python}",
            "Architecture": options.architecture,
            "Storage": str(options.storage),
            "LogDays": str(options.log_days),
            "SnapStart": "PublishedVersions" if options.snapstart else "None",
            "Reserved": "" if options.reserved is None else str(options.reserved),
            "Subnets": ",".join(options.subnets),
            "SecurityGroups": ",".join(options.security_groups),
            "Boundary": options.boundary,
            "Policies": ",".join(options.policies),
            "Secrets": ",".join(arn for arn, is_ssm in secrets.items() if not is_ssm),
            "SecretParameters": ",".join(arn for arn, is_ssm in secrets.items() if is_ssm),
            "SecretVariables": json.dumps(dict(options.secrets), separators=(",", ":")),
            "TopicKey": options.topic_key,
            "ExpressZone": options.express_zone,
        }
        return known | {"Release": _digest(self.whole, json.dumps(known))[:16]}

    @property
    def slots_key(self) -> str:
        """What the keys of the nested templates begin with: another where they differ."""
        return f"code/slots-{_digest(*self.nested.values())[:16]}"

    def template(self, release: str) -> str:
        """The whole template; versions of functions have names of the release."""
        return _VERSION.sub(rf"\g<1>{release}", self.whole)

    def resources(self) -> list[tuple[str, str]]:
        """Logical name and type of all resources, those of nested stacks too."""
        found = list(named(self.whole, self._conditions()))
        for text in self.nested.values():
            found += named(text, set())
        return found

    def _conditions(self) -> set[str]:
        options = self.options
        return {
            name
            for name, holds in (
                ("HasExpress", options.express_zone),
                ("HasSnapStart", options.snapstart),
            )
            if holds
        }


def plan(name: str, options: Options, *, region: str, account: str, partition: str) -> Plan:
    """What a stack of this name would be."""
    topics = -(-options.slots // MessageLimits.fanout)
    qualifier = ":live" if options.snapstart else ""
    domain = "amazonaws.com.cn" if partition == "aws-cn" else "amazonaws.com"
    stack = Stack(
        name=name,
        version=__version__,
        region=region,
        account=account,
        python=options.python,
        architecture=options.architecture,
        bucket=f"{name}-{account}-{region}",
        functions={memory: f"{name}-{memory}{qualifier}" for memory in sorted(options.memory)},
        topics=tuple(
            f"arn:{partition}:sns:{region}:{account}:{name}-group-{group}"
            for group in range(topics)
        ),
        queues=f"https://sqs.{region}.{domain}/{account}/{name}-slot-",
        slots=options.slots,
        image=options.image,
        express=f"{name}-{account}--{options.express_zone}--x-s3" if options.express_zone else "",
    )
    blocks = range(-(-options.slots // BLOCK))
    text = _file("stack.yaml")
    whole = expand(
        text,
        {
            "whole": [("-",)],
            "topic": [(f"Topic{group}", f"group-{group}") for group in range(topics)],
            "memory": [(str(memory),) for memory in sorted(options.memory)],
            "variable": [
                (json.dumps(k), json.dumps(v)) for k, v in sorted(options.environment.items())
            ],
            "block": [
                (f"Slots{block}", f"Topic{block * BLOCK // MessageLimits.fanout}", f"-{block}.yaml")
                for block in blocks
            ],
        },
    )
    bare = expand(_CUT.split(text)[0], {"whole": []})
    slots = _file("slots.yaml")
    nested = {
        f"-{block}.yaml": expand(
            slots,
            {
                "slot": [
                    (f"{slot:04d}",)
                    for slot in range(block * BLOCK, min((block + 1) * BLOCK, options.slots))
                ]
            },
        )
        for block in blocks
    }
    return Plan(stack, bare, whole, nested, options)


def expand(text: str, items: Mapping[str, Sequence[tuple[str, ...]]]) -> str:
    """Repeat what stands between markers, once for each item.

    ``# for each KIND: SAMPLE …`` names what stands for an item in the lines up to ``# end``: the
    samples there are replaced, the first by the item's first text, and so on. Markers may nest.
    """
    return "".join(f"{line}\n" for line in _expanded(iter(text.splitlines()), items))


def _expanded(
    lines: Iterator[str], items: Mapping[str, Sequence[tuple[str, ...]]]
) -> Iterator[str]:
    for line in lines:
        marker = _EACH.fullmatch(line)
        if marker is None:
            yield line
            continue
        block, depth = [], 1
        while depth:
            inner = next(lines)
            depth += 1 if _EACH.fullmatch(inner) else -1 if _END.fullmatch(inner) else 0
            block.append(inner)
        samples = marker[2].split(" ")
        for texts in items[marker[1]]:
            for inner in _expanded(iter(block[:-1]), items):
                for sample, replacement in zip(samples, texts, strict=True):
                    inner = inner.replace(sample, replacement)
                yield inner


def named(text: str, holding: set[str]) -> Iterator[tuple[str, str]]:
    """Logical name and type of a template's resources whose condition, if any, holds."""
    for found in _NAMED.finditer(text[text.index("\nResources:") :]):
        if found[3] is None or found[3] in holding:
            yield found[1], found[2]


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
