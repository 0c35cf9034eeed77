"""Proof of identity before a token is shown: challenge → HMAC of nonce and address under the token.

The registry tells where replicas are, and whoever can write to Redis can write there. So who read
an address there asks first: the learner, `tempsamp status` and `drain`. The proof covers the
address that the replica believes to have: a stranger who passes the challenge on to a real replica
gets a proof of that one's address.
"""

import hmac
import secrets

from pydantic import SecretStr

from common.errors import ConfigError
from common.messages import ReplicaIdentity
from common.secrets import Role

NONCE_BYTES = 32


def identity_of(replica: str, *, url: str, nonce: str, token: SecretStr | None) -> ReplicaIdentity:
    """A replica's answer."""
    return ReplicaIdentity(replica=replica, url=url, proof=_proof(nonce, url=url, token=token))


def challenge(role: Role) -> dict[str, str]:
    """Query of GET /v1/identity: a nonce of its own, and whose token is to be proven."""
    return {"nonce": secrets.token_hex(NONCE_BYTES), "role": role}


def verify(identity: ReplicaIdentity, *, url: str, nonce: str, token: SecretStr | None) -> None:
    """Check an answer that came from `url`.

    Raises:
        ConfigError: it belongs to another address, or its sender does not know the token.
    """
    if identity.url != url:
        raise ConfigError(
            f"{url} answers for a replica at {identity.url}: it is not told the token "
            "(rollout.advertise_host has to be the address in the registry)"
        )
    if not hmac.compare_digest(identity.proof, _proof(nonce, url=url, token=token)):
        raise ConfigError(
            f"{url} does not know the token (TEMPSAMP_TOKEN, or its role's): it is not told it"
        )


def _proof(nonce: str, *, url: str, token: SecretStr | None) -> str:
    if token is None:
        return ""
    body = f"replica {nonce} {url}".encode()
    return hmac.digest(token.get_secret_value().encode(), body, "sha256").hex()
