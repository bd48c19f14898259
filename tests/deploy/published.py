"""Field names and types of the Kubernetes API as far as deploy/jobset.yaml uses it, as they are published.

JobSet: https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/ ; Job and Pod: the reference of batch/v1 and core/v1.
Objects of JobSet's own kinds are complete here; of the others there are the fields that a run may want.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """An object: a type for each field, some of which have to be there."""

    fields: Mapping[str, Any]
    required: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ListOf:
    """A list, each member of one type."""

    member: Any


@dataclass(frozen=True)
class OneOf:
    """A text that is one of these."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class MapOf:
    """Any names, each value of one type."""

    value: Any


TEXT, NUMBER, SWITCH = str, int, bool
TEXTS = ListOf(TEXT)
#: A quantity of the API is a text or a number.
QUANTITIES = MapOf((str, int))
METADATA = Kind({"name": TEXT, "namespace": TEXT, "labels": MapOf(TEXT), "annotations": MapOf(TEXT)})

CONFINEMENT = Kind(
    {
        "allowPrivilegeEscalation": SWITCH,
        "capabilities": Kind({"add": TEXTS, "drop": TEXTS}),
        "privileged": SWITCH,
        "readOnlyRootFilesystem": SWITCH,
        "runAsUser": NUMBER,
        "runAsNonRoot": SWITCH,
    }
)
CONTAINER = Kind(
    {
        "name": TEXT,
        "image": TEXT,
        "imagePullPolicy": OneOf(("Always", "IfNotPresent", "Never")),
        "command": TEXTS,
        "args": TEXTS,
        "workingDir": TEXT,
        "env": ListOf(Kind({"name": TEXT, "value": TEXT, "valueFrom": MapOf(MapOf(TEXT))}, frozenset({"name"}))),
        "ports": ListOf(Kind({"name": TEXT, "containerPort": NUMBER, "protocol": TEXT}, frozenset({"containerPort"}))),
        "resources": Kind({"requests": QUANTITIES, "limits": QUANTITIES}),
        "securityContext": CONFINEMENT,
        "volumeMounts": ListOf(
            Kind(
                {"name": TEXT, "mountPath": TEXT, "readOnly": SWITCH, "subPath": TEXT},
                frozenset({"name", "mountPath"}),
            )
        ),
    },
    frozenset({"name"}),
)
VOLUME = Kind(
    {
        "name": TEXT,
        "emptyDir": Kind({"medium": OneOf(("", "Memory")), "sizeLimit": (str, int)}),
        "secret": Kind(
            {
                "secretName": TEXT,
                "defaultMode": NUMBER,
                "optional": SWITCH,
                "items": ListOf(
                    Kind({"key": TEXT, "path": TEXT, "mode": NUMBER}, frozenset({"key", "path"})),
                ),
            }
        ),
        "persistentVolumeClaim": Kind({"claimName": TEXT, "readOnly": SWITCH}, frozenset({"claimName"})),
    },
    frozenset({"name"}),
)
SELECTOR = Kind(
    {
        "matchLabels": MapOf(TEXT),
        "matchExpressions": ListOf(
            Kind(
                {"key": TEXT, "operator": OneOf(("In", "NotIn", "Exists", "DoesNotExist")), "values": TEXTS},
                frozenset({"key", "operator"}),
            )
        ),
    }
)
POD_AFFINITY_TERM = Kind(
    {"labelSelector": SELECTOR, "namespaces": TEXTS, "namespaceSelector": SELECTOR, "topologyKey": TEXT},
    frozenset({"topologyKey"}),
)
POD_AFFINITY = Kind(
    {
        "requiredDuringSchedulingIgnoredDuringExecution": ListOf(POD_AFFINITY_TERM),
        "preferredDuringSchedulingIgnoredDuringExecution": ListOf(
            Kind({"weight": NUMBER, "podAffinityTerm": POD_AFFINITY_TERM}, frozenset({"weight", "podAffinityTerm"}))
        ),
    }
)
POD = Kind(
    {
        "restartPolicy": OneOf(("OnFailure", "Never")),  # of those, which a Job allows
        "terminationGracePeriodSeconds": NUMBER,
        "securityContext": Kind(
            {
                "runAsUser": NUMBER,
                "runAsGroup": NUMBER,
                "runAsNonRoot": SWITCH,
                "fsGroup": NUMBER,
                "seccompProfile": Kind({"type": TEXT, "localhostProfile": TEXT}, frozenset({"type"})),
            }
        ),
        "initContainers": ListOf(CONTAINER),
        "containers": ListOf(CONTAINER),
        "volumes": ListOf(VOLUME),
        "nodeSelector": MapOf(TEXT),
        "serviceAccountName": TEXT,
        "subdomain": TEXT,
        "setHostnameAsFQDN": SWITCH,
        "affinity": Kind({"podAffinity": POD_AFFINITY, "podAntiAffinity": POD_AFFINITY}),
    },
    frozenset({"containers", "restartPolicy"}),
)
POD_FAILURE_RULE = Kind(
    {
        "action": OneOf(("FailJob", "FailIndex", "Ignore", "Count")),
        "onExitCodes": Kind(
            {"containerName": TEXT, "operator": OneOf(("In", "NotIn")), "values": ListOf(NUMBER)},
            frozenset({"operator", "values"}),
        ),
        "onPodConditions": ListOf(Kind({"type": TEXT, "status": TEXT}, frozenset({"type", "status"}))),
    },
    frozenset({"action"}),
)
JOB = Kind(
    {
        "activeDeadlineSeconds": NUMBER,
        "backoffLimit": NUMBER,
        "backoffLimitPerIndex": NUMBER,
        "completionMode": OneOf(("NonIndexed", "Indexed")),
        "completions": NUMBER,
        "maxFailedIndexes": NUMBER,
        "parallelism": NUMBER,
        "podFailurePolicy": Kind({"rules": ListOf(POD_FAILURE_RULE)}, frozenset({"rules"})),
        "podReplacementPolicy": OneOf(("TerminatingOrFailed", "Failed")),
        "suspend": SWITCH,
        "template": Kind({"metadata": METADATA, "spec": POD}, frozenset({"spec"})),
        "ttlSecondsAfterFinished": NUMBER,
    },
    frozenset({"template"}),
)
REPLICATED_JOB = Kind(
    {
        "name": TEXT,
        "groupName": TEXT,
        "template": Kind({"metadata": METADATA, "spec": JOB}, frozenset({"spec"})),
        "replicas": NUMBER,
        "dependsOn": ListOf(
            Kind({"name": TEXT, "status": OneOf(("Ready", "Complete"))}, frozenset({"name", "status"}))
        ),
    },
    frozenset({"name", "template"}),
)
JOB_SET_SPEC = Kind(
    {
        "replicatedJobs": ListOf(REPLICATED_JOB),
        "network": Kind({"enableDNSHostnames": SWITCH, "subdomain": TEXT, "publishNotReadyAddresses": SWITCH}),
        "successPolicy": Kind(
            {"operator": OneOf(("All", "Any")), "targetReplicatedJobs": TEXTS}, frozenset({"operator"})
        ),
        "failurePolicy": Kind(
            {
                "maxRestarts": NUMBER,
                "restartStrategy": OneOf(("Recreate", "BlockingRecreate")),
                "rules": ListOf(
                    Kind(
                        {
                            "name": TEXT,
                            "action": OneOf(("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")),
                            "onJobFailureReasons": ListOf(
                                OneOf(
                                    (
                                        "BackoffLimitExceeded",
                                        "DeadlineExceeded",
                                        "FailedIndexes",
                                        "MaxFailedIndexesExceeded",
                                        "PodFailurePolicy",
                                    )
                                )
                            ),
                            "targetReplicatedJobs": TEXTS,
                        },
                        frozenset({"action"}),
                    )
                ),
            }
        ),
        "startupPolicy": Kind({"startupPolicyOrder": OneOf(("AnyOrder", "InOrder"))}),
        "suspend": SWITCH,
        "coordinator": Kind({"replicatedJob": TEXT, "jobIndex": NUMBER, "podIndex": NUMBER}),
        "managedBy": TEXT,
        "ttlSecondsAfterFinished": NUMBER,
    },
    frozenset({"replicatedJobs"}),
)
CLAIM_SPEC = Kind(
    {
        "accessModes": ListOf(OneOf(("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"))),
        "resources": Kind({"requests": QUANTITIES, "limits": QUANTITIES}),
        "storageClassName": TEXT,
    },
    frozenset({"accessModes", "resources"}),
)

_HEAD = {"apiVersion": TEXT, "kind": TEXT, "metadata": METADATA}
_HEADED = frozenset({"apiVersion", "kind", "metadata", "spec"})

#: What a document of a file may be, by version and kind.
DOCUMENTS = {
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): Kind({**_HEAD, "spec": JOB_SET_SPEC}, _HEADED),
    ("v1", "PersistentVolumeClaim"): Kind({**_HEAD, "spec": CLAIM_SPEC}, _HEADED),
}


def faults(value: Any, kind: Any, where: str = "") -> Iterator[str]:
    """Find what the API would not take: unknown fields, missing ones, values of another type."""
    match kind:
        case Kind():
            if not isinstance(value, dict):
                yield f"{where}: {value!r} is no object"
                return
            yield from (f"{where}.{name}: no such field" for name in value.keys() - kind.fields.keys())
            yield from (f"{where}.{name}: missing" for name in kind.required - value.keys())
            for name in value.keys() & kind.fields.keys():
                yield from faults(value[name], kind.fields[name], f"{where}.{name}")
        case ListOf():
            if not isinstance(value, list):
                yield f"{where}: {value!r} is no list"
                return
            for number, member in enumerate(value):
                yield from faults(member, kind.member, f"{where}[{number}]")
        case MapOf():
            if not isinstance(value, dict):
                yield f"{where}: {value!r} is no object"
                return
            for name, member in value.items():
                yield from faults(member, kind.value, f"{where}.{name}")
        case OneOf():
            if value not in kind.values:
                yield f"{where}: {value!r} is none of {kind.values}"
        case _:
            # A switch is a number to Python and not to the API.
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                yield f"{where}: {value!r} is of another type"
