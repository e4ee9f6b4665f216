# SPDX-License-Identifier: Apache-2.0
"""WHO: the caller's identity, as the Workload API tells it.

Holds the live source, snapshots, admission and verification of SVIDs, trust bundles. Does not hold what an identity
may do. gRPC is imported when a source is started, not before.
"""

from jitwi.identity.bundle import (
    SpiffeBundle,
    StaticBundleSource,
    parse_jwks,
    parse_spiffe_bundle,
    parse_x509_bundle,
    x509_bundle,
)
from jitwi.identity.endpoint import Endpoint
from jitwi.identity.identity import (
    BundleSource,
    Identity,
    IdentityEvent,
    IdentityEventKind,
    IdentitySource,
    JwtBundle,
    JwtSvid,
    SourceState,
    SvidKey,
    SvidKind,
    X509Bundle,
)
from jitwi.identity.jwt_svid import VerifiedJwtSvid, parse_and_verify
from jitwi.identity.source import SourceStatus, WorkloadApiSource
from jitwi.identity.x509_svid import VerifiedX509Svid, verify_x509_svid

__all__ = [
    "BundleSource",
    "Endpoint",
    "Identity",
    "IdentityEvent",
    "IdentityEventKind",
    "IdentitySource",
    "JwtBundle",
    "JwtSvid",
    "SourceState",
    "SourceStatus",
    "SpiffeBundle",
    "StaticBundleSource",
    "SvidKey",
    "SvidKind",
    "VerifiedJwtSvid",
    "VerifiedX509Svid",
    "WorkloadApiSource",
    "X509Bundle",
    "parse_and_verify",
    "parse_jwks",
    "parse_spiffe_bundle",
    "parse_x509_bundle",
    "verify_x509_svid",
    "x509_bundle",
]
