# Echoes over gRPC on PORT, or says a TEXT to an ADDRESS: grpc_echo.py PORT | ADDRESS TEXT
# One call, one that fails, and a stream in both directions.
import concurrent.futures, sys, grpc


class Echo(grpc.GenericRpcHandler):
    def service(self, call):
        if call.method == "/bazaar.Echo/Say":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: request)
        if call.method == "/bazaar.Echo/Talk":
            return grpc.stream_stream_rpc_method_handler(lambda requests, context: (r for r in requests))


def serve(port):
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8), handlers=[Echo()])
    server.add_insecure_port("[::]:" + port)
    server.start()
    server.wait_for_termination()


def say(address, text):
    with grpc.insecure_channel(address) as channel:
        assert channel.unary_unary("/bazaar.Echo/Say")(text, timeout=60) == text
        try:
            channel.unary_unary("/bazaar.Echo/Unknown")(text, timeout=60)
            raise AssertionError("an unknown method answers")
        except grpc.RpcError as e:
            assert e.code() == grpc.StatusCode.UNIMPLEMENTED, e
        want = [text, b"x" * 300000, text]
        assert list(channel.stream_stream("/bazaar.Echo/Talk")(iter(want), timeout=60)) == want
        print(text.decode())


if len(sys.argv) == 2:
    serve(sys.argv[1])
else:
    say(sys.argv[1], sys.argv[2].encode())
