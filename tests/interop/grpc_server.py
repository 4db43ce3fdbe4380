"""A gRPC server of the library grpcio, with bytes for messages. Says "ready" once it listens."""

import sys
from concurrent import futures

import grpc


def unary(request, context):
    context.set_trailing_metadata((("peer", context.peer()), ("sum-bin", bytes([len(request) % 256]))))
    return request


def fail(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked: \u00e9 100%")


def download(request, context):
    for number in range(int(request)):
        yield bytes([number % 256]) * 20_000


def upload(requests, context):
    return str(sum(len(request) for request in requests)).encode()


def chat(requests, context):
    context.send_initial_metadata((("hello", "there"),))
    for request in requests:
        yield request


METHODS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Secret": grpc.unary_unary_rpc_method_handler(unary),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Download": grpc.unary_stream_rpc_method_handler(download),
    "Upload": grpc.stream_unary_rpc_method_handler(upload),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
    "SecretChat": grpc.stream_stream_rpc_method_handler(chat),
}

server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", -1)])
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("interop.Echo", METHODS),))
server.add_insecure_port(sys.argv[1])
server.start()
print("ready", flush=True)
server.wait_for_termination()
