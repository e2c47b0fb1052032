"""A recorder of the Cerebras protocol: the SDK's real client sends its requests to it, and it writes them down.

`python -m tests.cerebras.loopback CALLS.jsonl`, a process of its own, prints the port it listens on. It is no compiler and no cluster: a
compile request succeeds, a job that would train is refused, everything else is answered with as little as the client goes on from. The
surprise: it tells no version, as releases long ago; towards a newer one the client waits for heartbeats, every ten seconds one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import grpc
from cerebras.appliance.pb.framework import appliance_service_pb2 as appliance
from cerebras.appliance.pb.framework.appliance_service_pb2_grpc import ApplianceServicer, add_ApplianceServicer_to_server
from cerebras.appliance.pb.workflow.appliance.cluster_mgmt import cluster_pb2 as cluster
from cerebras.appliance.pb.workflow.appliance.cluster_mgmt import cluster_pb2_grpc
from cerebras.appliance.pb.workflow.appliance.cluster_mgmt.csctl import api_pb2, api_pb2_grpc
from cerebras.appliance.pb.workflow.appliance.common.common_config_pb2 import ClusterDetails
from cerebras.appliance.pb.ws.common_pb2 import ClockSyncResponse
from google.protobuf.json_format import MessageToDict

JOB, COMPILE_DIR, REFUSAL = "recorded-job", "/compiled/here", "this is a recorder and no cluster"
Task = ClusterDetails.TaskInfo


class Management(cluster_pb2_grpc.ClusterManagementServicer):
    """Jobs begin, are ready at once, and end."""

    def GetServerConfig(self, request, context):
        return cluster.GetServerConfigResponse()

    def IsMessageBrokerAvailable(self, request, context):
        return cluster.MessageBrokerAvailabilityCheckResponse()

    def GetServerVersions(self, request, context):
        return cluster.GetServerVersionsResponse()

    def InitCompileJob(self, request, context):
        return cluster.CompileJobResponse(job_id=JOB, compile_dir_absolute_path=COMPILE_DIR)

    def PollIngressV2(self, request, context):
        yield cluster.GetIngressResponse(is_ready=True, is_scheduled=True, message="ready")

    def GetJobEvents(self, request, context):
        return cluster.GetJobEventsResponse()

    def GetJobMeta(self, request, context):
        return cluster.GetJobMetaResponse()

    def HeartbeatV2(self, requests, context) -> Iterator[cluster.HeartbeatResponse]:
        time.sleep(1)  # the client calls again until it is done, and waits for the end of the last call
        yield from ()

    def FinalizeCompileJob(self, request, context):
        return cluster.CompileResultResponse()

    def InitImageBuildJob(self, request, context):
        return cluster.ImageBuildResponse(image_reference="workers", job_id=JOB)

    def GetImageBuildJob(self, request, context):
        return cluster.ImageBuildResponse(image_reference="workers", job_id=JOB, image_ready=True)

    def InitExecuteJob(self, request, context):
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, REFUSAL)

    def GetJob(self, request, context):
        return cluster.GetJobResponse(status=cluster.JOB_STATUS_FAILED)

    def CancelJobV2(self, request, context):
        return cluster.CancelJobResponse()


class Control(api_pb2_grpc.CsCtlV1Servicer):
    """A cluster of no nodes and no volumes."""

    def Get(self, request, context):
        return api_pb2.GetResponse()


class Coordinator(ApplianceServicer):
    """A compiler that compiles nothing. Its version, also untold, is refused by a client that checks it."""

    def UnaryClockSync(self, request, context):
        return ClockSyncResponse()

    def UnaryStart(self, request, context):
        return appliance.StartResponse()

    def UnaryCompile(self, request, context):
        tasks = [Task(task_type=kind) for kind in (Task.CRD, Task.WRK, Task.ACT, Task.CMD, Task.WGT, Task.CHF)]
        return appliance.CompileResponse(cache_compile_dir=f"{COMPILE_DIR}/0", cluster_details=ClusterDetails(tasks=tasks))

    def UnaryDone(self, request, context):
        return appliance.DoneResponse()


class Recorder(grpc.ServerInterceptor):
    """Writes each request with its method to a file, before it is answered."""

    def __init__(self, calls: IO[str]) -> None:
        self.calls = calls

    def intercept_service(self, continuation: Callable, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        handler = continuation(details)
        if handler is None or handler.response_streaming:
            return handler

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            told = MessageToDict(request, preserving_proto_field_name=True)
            self.calls.write(json.dumps([details.method.rpartition("/")[2], told]) + "\n")  # in one piece: there are several threads
            self.calls.flush()
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)


def main(calls: IO[str]) -> None:
    server = grpc.server(ThreadPoolExecutor(8), interceptors=[Recorder(calls)], options=[("grpc.max_receive_message_length", -1)])
    cluster_pb2_grpc.add_ClusterManagementServicer_to_server(Management(), server)
    api_pb2_grpc.add_CsCtlV1Servicer_to_server(Control(), server)
    add_ApplianceServicer_to_server(Coordinator(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    with open(sys.argv[1], "w") as calls:
        main(calls)
