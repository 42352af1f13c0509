"""How every client of the cluster connects and says who it is."""

import ssl
from typing import Any

from pipeline.errors import Misconfigured
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


def check(settings: KafkaSettings) -> None:
    """Raise Misconfigured with every file of the settings that is not there, or does not fit."""
    names = ("ssl_ca_file", "ssl_certificate_file", "ssl_key_file")
    files = {name: getattr(settings, name) for name in names}
    problems = [f"kafka.{name} {file} is not a file." for name, file in files.items() if file and not file.is_file()]
    if not problems:
        try:
            tls(settings)
        except (OSError, ssl.SSLError) as error:
            problems = [f"kafka.ssl_…_file: {error.strerror or error}."]
    if problems:
        raise Misconfigured(problems)
