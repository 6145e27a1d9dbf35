# A stand-in for S3, plain and with TLS over the same buckets. Tells its two ports and its
# certificate, and serves until its input ends, which it does when its starter's process
# does, however that ends.
import datetime
import ipaddress
import ssl
import sys
import tempfile
import threading

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from moto.server import DomainDispatcherApplication, ThreadedMotoServer, create_backend_app
from werkzeug.serving import make_server

plain = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
plain.start()

key = ec.generate_private_key(ec.SECP256R1())
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "moto")])
host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
now = datetime.datetime.now(datetime.timezone.utc)
day = datetime.timedelta(days=1)
certificate = (
    x509.CertificateBuilder()
    .subject_name(name)
    .issuer_name(name)
    .public_key(key.public_key())
    .serial_number(1)
    .not_valid_before(now - day)
    .not_valid_after(now + day)
    .add_extension(host, critical=False)
    .sign(key, hashes.SHA256())
)
pem = certificate.public_bytes(serialization.Encoding.PEM)
secret = key.private_bytes(
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
with tempfile.NamedTemporaryFile() as file:
    file.write(secret + pem)
    file.flush()
    context.load_cert_chain(file.name)
application = DomainDispatcherApplication(create_backend_app)
secure = make_server("127.0.0.1", 0, application, threaded=True, ssl_context=context)
threading.Thread(target=secure.serve_forever, daemon=True).start()

port = plain.get_host_and_port()[1]
print(port, secure.server_port, pem.hex(), flush=True)
sys.stdin.read()
