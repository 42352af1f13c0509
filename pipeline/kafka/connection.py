"""How every client of the cluster connects and says who it is."""

import ssl
from typing import Any

from pipeline.settings import KafkaSettings


def configuration(settings: KafkaSettings) -> dict[str, Any]:
    """librdkafka's properties for these settings."""
    sasl = settings.security_protocol.startswith("SASL")
    wanted = {
        "bootstrap.servers": settings.bootstrap_servers,
        "security.protocol": settings.security_protocol,
        "sasl.mechanism": settings.sasl_mechanism if sasl else None,
        "sasl.username": settings.sasl_username if sasl else None,
        "sasl.password": settings.sasl_password.get_secret_value() if sasl else None,
        "ssl.ca.location": settings.ssl_ca_file,
        "ssl.certificate.location": settings.ssl_certificate_file,
        "ssl.key.location": settings.ssl_key_file,
    }
    return {name: str(value) for name, value in wanted.items() if value is not None}


def tls(settings: KafkaSettings) -> ssl.SSLContext | None:
    """The same for clients in Python: a context where the protocol has TLS."""
    if not settings.security_protocol.endswith("SSL"):
        return None
    context = ssl.create_default_context(cafile=settings.ssl_ca_file)
    if settings.ssl_certificate_file:
        context.load_cert_chain(settings.ssl_certificate_file, settings.ssl_key_file)
    return context
