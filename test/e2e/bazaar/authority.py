# An external authorizer over gRPC (port 9000) and HTTP (8000), and an issuer of tokens
# whose keys are at http://HOST:8001/keys: those of the file /keys.json.
#
# Both authorizers look at the request's header x-pass: "yes" is allowed and gets a header
# for the application, "login" is sent elsewhere, anything else is denied.
import concurrent.futures, http.server, threading, grpc


def fields(message):
    # The fields of a protobuf message: (number, value); texts and messages are bytes.
    at = 0

    def varint():
        nonlocal at
        n = shift = 0
        while True:
            n |= (message[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if message[at - 1] < 128:
                return n

    while at < len(message):
        tag = varint()
        if tag & 7 == 2:
            size = varint()
            at += size
            yield tag >> 3, message[at - size : at]
        else:
            assert tag & 7 == 0, tag
            yield tag >> 3, varint()


def one(message, *path):
    # What is at a path of field numbers, b"" if nothing is.
    for number in path:
        message = dict(fields(message)).get(number, b"")
    return message


def field(number, value):
    if isinstance(value, int):
        assert value < 128
        return bytes([number << 3, value])
    size = len(value)
    return bytes([number << 3 | 2]) + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])) + value


def header(name, value):  # HeaderValueOption
    return field(1, field(1, name) + field(2, value))


def check(request, context):
    # envoy.service.auth.v3: CheckRequest -> CheckResponse
    attributes = one(request, 1)
    sent = {}
    for number, entry in fields(one(attributes, 4, 2)):
        if number == 3:
            sent[one(entry, 1).decode()] = one(entry, 2).decode()
    if sent.get("x-pass") == "yes":
        return field(1, b"") + field(3, field(2, header(b"x-user", one(attributes, 1, 4))))
    status = 302 if sent.get("x-pass") == "login" else 403
    denied = field(1, bytes([8, status & 127 | 128, status >> 7])) + field(3, b"denied by gRPC")
    if status == 302:
        denied += field(2, header(b"location", b"https://login.example/"))
    return field(1, field(1, 7)) + field(2, denied)


class Grpc(grpc.GenericRpcHandler):
    def service(self, call):
        if call.method == "/envoy.service.auth.v3.Authorization/Check":
            return grpc.unary_unary_rpc_method_handler(check)


class Http(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in {"content_length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.server.server_port == 8001:
            with open("/keys.json", "rb") as keys:
                self.answer(200, keys.read(), cache_control="max-age=1")
        elif self.headers["x-pass"] == "yes":
            self.answer(200, b"", x_user="asked-for-" + self.path)
        elif self.headers["x-pass"] == "login":
            self.answer(302, b"", location="https://login.example/", set_cookie="from=http")
        else:
            self.answer(403, b"denied by HTTP")


server = grpc.server(concurrent.futures.ThreadPoolExecutor(8), handlers=[Grpc()])
server.add_insecure_port("[::]:9000")
server.start()
for port in [8000, 8001]:
    threading.Thread(target=http.server.ThreadingHTTPServer(("", port), Http).serve_forever).start()
server.wait_for_termination()
