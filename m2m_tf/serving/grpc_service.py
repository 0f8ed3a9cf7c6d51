"""TF Serving's gRPC services over a `ModelStore`, on its official stubs."""

import functools
import logging

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError, Message
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from m2m_tf.serving.model_store import (
    InvalidRequest,
    ModelStore,
    NotFound,
    State,
    UnknownSignature,
    shown,
)
from m2m_tf.serving.monitoring import observed
from m2m_tf.signatures import (
    REGRESS_INPUT,
    REGRESS_OUTPUT,
    SERVING_DEFAULT,
    SIGNATURE_DEF,
)

log = logging.getLogger(__name__)


def add_services(server: grpc.Server, store: ModelStore) -> None:
    """Adds PredictionService and ModelService to a gRPC server."""
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        _PredictionService(store), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(
        _ModelService(store), server
    )


class BadBytes(grpc.ServerInterceptor):
    """Bytes that are no message of the method are the caller's fault.

    gRPC itself would call them an internal error.
    """

    def intercept_service(self, continuation, details):
        handler = continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler

        def answer(data, context):
            try:
                request = handler.request_deserializer(data)
            except DecodeError as error:
                method = details.method.rpartition("/")[2]
                with observed("grpc", method) as seen:
                    seen.status = grpc.StatusCode.INVALID_ARGUMENT.name
                context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"The request is no valid message of {method}: {error}",
                )
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            answer, response_serializer=handler.response_serializer
        )


def _method(function):
    """Counts calls and turns exceptions into gRPC statuses."""

    @functools.wraps(function)
    def answer(self, request, context):
        with observed("grpc", function.__name__) as seen:
            try:
                if request.model_spec.name != self.store.name:
                    raise NotFound(
                        f"Model {request.model_spec.name!r} is not served "
                        f"here; {self.store.name!r} is."
                    )
                return function(self, request)
            except UnknownSignature as error:
                # As TF Serving has it, whose other calls say otherwise.
                code, text = grpc.StatusCode.INVALID_ARGUMENT, shown(error)
                if function.__name__ == "Predict":
                    code = grpc.StatusCode.FAILED_PRECONDITION
            except InvalidRequest as error:
                code, text = grpc.StatusCode.INVALID_ARGUMENT, shown(error)
            except NotFound as error:
                code, text = grpc.StatusCode.NOT_FOUND, shown(error)
            except Exception:
                log.exception("%s failed", function.__name__)
                code, text = grpc.StatusCode.INTERNAL, "see the server's log"
            seen.status = code.name
        # Raises: nothing after it is reached.
        context.abort(code, text)

    return answer


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, store):
        self.store = store

    @_method
    def Predict(self, request):
        model, signature = self._asked(request.model_spec)
        inputs = {
            name: _array(model, signature, name, tensor)
            for name, tensor in request.inputs.items()
        }
        outputs = model.run(signature, inputs)
        wanted = request.output_filter or outputs
        if unknown := sorted(set(wanted) - set(outputs)):
            raise InvalidRequest(
                f"`output_filter` asks for {unknown}; outputs are "
                f"{sorted(outputs)}."
            )
        response = predict_pb2.PredictResponse()
        for name in wanted:
            response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name]))
        _tell_spec(response, self.store, model, signature)
        return response

    @_method
    def Regress(self, request):
        model, signature = self._asked(request.model_spec)
        given = request.input.WhichOneof("kind")
        if given is None:
            raise InvalidRequest(
                "`input` must hold an `example_list`, or one with a context."
            )
        listed = getattr(request.input, given)
        examples = []
        for example in listed.examples:
            if given == "example_list_with_context":
                # Of a feature in both the example's counts.
                merged = tf.train.Example()
                merged.CopyFrom(listed.context)
                for name, feature in example.features.feature.items():
                    merged.features.feature[name].CopyFrom(feature)
                example = merged
            examples.append(example.SerializeToString())
        values = regress(model, signature, examples)
        response = regression_pb2.RegressionResponse()
        for value in values:
            response.result.regressions.add(value=value)
        _tell_spec(response, self.store, model, signature)
        return response

    @_method
    def GetModelMetadata(self, request):
        model, _ = self._asked(request.model_spec)
        if not request.metadata_field:
            raise InvalidRequest(
                f"`metadata_field` must hold {SIGNATURE_DEF!r}. It is empty."
            )
        for field in request.metadata_field:
            if field != SIGNATURE_DEF:
                raise InvalidRequest(
                    f"`metadata_field` must be {SIGNATURE_DEF!r}. "
                    f"Received: {field!r}."
                )
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.metadata[SIGNATURE_DEF].Pack(signature_map(model))
        _tell_spec(response, self.store, model)
        return response

    def _asked(self, model_spec):
        version = None
        choice = model_spec.WhichOneof("version_choice")
        if choice == "version":
            version = model_spec.version.value
        elif choice == "version_label":
            raise NotFound("Versions have no labels here.")
        model = self.store.get(version)
        return model, model_spec.signature_name or SERVING_DEFAULT


class _ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, store):
        self.store = store

    @_method
    def GetModelStatus(self, request):
        version = None
        if request.model_spec.WhichOneof("version_choice") == "version":
            version = request.model_spec.version.value
        return model_status(self.store, version)


def regress(model, signature: str, examples: list[bytes]) -> list[float]:
    """Answers a request of the Regress API.

    Raises:
        InvalidRequest: If the signature is not one for it.
    """
    if set(model.inputs(signature)) != {REGRESS_INPUT}:
        names = [
            name
            for name in model.signature_names
            if set(model.inputs(name)) == {REGRESS_INPUT}
        ]
        raise InvalidRequest(
            f"Signature {signature!r} is not one of the Regress API; set "
            f"`signature_name` to one of {names}."
        )
    outputs = model.run(signature, {REGRESS_INPUT: np.array(examples, object)})
    return outputs[REGRESS_OUTPUT].ravel().tolist()


def signature_map(model) -> Message:
    """The signatures of a version as TF Serving tells them."""
    told = get_model_metadata_pb2.SignatureDefMap()
    for name in model.signature_names:
        definition = told.signature_def[name]
        definition.method_name = model.methods.get(name, "")
        for target, specs in (
            (definition.inputs, model.inputs(name)),
            (definition.outputs, model.outputs(name)),
        ):
            for key, spec in specs.items():
                target[key].CopyFrom(
                    meta_graph_pb2.TensorInfo(
                        name=key,
                        dtype=spec.dtype.as_datatype_enum,
                        tensor_shape=spec.shape.as_proto(),
                    )
                )
    return told


def model_status(store: ModelStore, version: int | None = None) -> Message:
    """State of one version or of all.

    Raises:
        NotFound: If there is no such version.
    """
    known = store.status()
    if version is not None and version not in known:
        raise NotFound(f"Model {store.name!r} has no version {version}.")
    response = get_model_status_pb2.GetModelStatusResponse()
    for number, status in known.items():
        if version in (None, number):
            entry = response.model_version_status.add(
                version=number, state=status.state
            )
            broken = status.state == State.END
            entry.status.error_code = 13 if broken else 0  # INTERNAL or OK
            entry.status.error_message = status.error
    return response


def _array(model, signature, name, tensor):
    spec = model.inputs(signature).get(name)
    if spec is None:
        return None  # Which the model refuses by name.
    if tensor.dtype != spec.dtype.as_datatype_enum:
        try:
            received = tf.dtypes.as_dtype(tensor.dtype).name
        except TypeError:
            received = f"type {tensor.dtype}"
        raise InvalidRequest(
            f"{name!r} must be {spec.dtype.name}. Received: {received}."
        )
    # First: a tensor of one value may claim any size, and would be filled.
    shape = [axis.size for axis in tensor.tensor_shape.dim]
    model.check_shape(signature, name, shape)
    try:
        values = tf.make_ndarray(tensor)
    # It raises what its parsing stumbles over: none of it is ours.
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InvalidRequest(f"{name!r} is no valid tensor: {error}") from error
    return values


def _tell_spec(response, store, model, signature=""):
    response.model_spec.name = store.name
    response.model_spec.version.value = model.version
    response.model_spec.signature_name = signature
