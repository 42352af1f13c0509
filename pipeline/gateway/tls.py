"""TLS for both ports, with certificates that may change while the gateway runs."""

import ssl
from collections.abc import Sequence
from typing import Any

from pipeline.errors import Misconfigured
from pipeline.settings import GatewaySettings


class Certificates:
    """The server's certificate, and what clients' certificates are held against."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._contexts: list[ssl.SSLContext] = []
        self.reload()

    def context(self, protocol: str) -> ssl.SSLContext | None:
        """For a port that speaks `protocol` (its ALPN name); None where TLS is not configured."""
        if self._settings.tls_certificate_file is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols([protocol])
        if self._settings.tls_client_ca_file:
            context.verify_mode = ssl.CERT_REQUIRED
        self._load(context)
        self._contexts.append(context)
        return context

    def reload(self) -> None:
        """Read the files again, for connections to come; raise Misconfigured and keep the old where they do not fit.

        A client CA that was taken out of its file is trusted until the process starts anew.
        """
        if self._settings.tls_certificate_file is None:
            return
        self._load(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))  # tried on nobody first
        for context in self._contexts:
            self._load(context)

    def _load(self, context: ssl.SSLContext) -> None:
        own = self._settings
        try:
            context.load_cert_chain(str(own.tls_certificate_file), own.tls_key_file, password=_refuse)
        except (OSError, ssl.SSLError) as error:
            raise Misconfigured(
                f"gateway.tls_certificate_file {own.tls_certificate_file} with gateway.tls_key_file "
                f"{own.tls_key_file}: {error.strerror or error}."
            ) from None
        if own.tls_client_ca_file:
            try:
                context.load_verify_locations(own.tls_client_ca_file)
            except (OSError, ssl.SSLError) as error:
                raise Misconfigured(
                    f"gateway.tls_client_ca_file {own.tls_client_ca_file}: {error.strerror or error}."
                ) from None


def _refuse() -> str:
    raise ssl.SSLError(0, "the key is encrypted, and nobody is here to type its password")


def names(peer: dict[str, Any] | None) -> tuple[str, ...]:
    """Common and alternative names of a verified peer certificate, as `ssl` describes one."""
    if not peer:
        return ()
    subject: Sequence[Any] = peer.get("subject", ())
    common = [value for part in subject for key, value in part if key == "commonName"]
    return (*common, *(value for _, value in peer.get("subjectAltName", ())))
