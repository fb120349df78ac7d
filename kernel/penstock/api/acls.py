"""DescribeAcls, CreateAcls, DeleteAcls: there is no authorizer, and SECURITY_DISABLED says so.

UIs ask for ACLs and take this answer for an empty list; without the API they show an error page.
"""

from __future__ import annotations

__all__ = ("APIS", "create_acls_nowait", "delete_acls_nowait", "describe_acls_nowait")

from typing import Final

from penstock.api.authorization import the_cluster
from penstock.api.context import RequestContext
from penstock.api.declaration import Api, one_code
from penstock.api.portions import Steps, first_portion, other_portions
from penstock.spi.authorizer import Operation
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.create_acls import AclCreationResult, CreateAclsRequest, CreateAclsResponse
from penstock.wire.messages.delete_acls import DeleteAclsFilterResult, DeleteAclsRequest, DeleteAclsResponse
from penstock.wire.messages.describe_acls import DescribeAclsRequest, DescribeAclsResponse

_TEXT: Final = "this broker has no authorizer"


def describe_acls_nowait(request: DescribeAclsRequest, context: RequestContext) -> DescribeAclsResponse:
    """SECURITY_DISABLED."""
    return DescribeAclsResponse(error_code=ErrorCode.SECURITY_DISABLED, error_message=_TEXT, resources=[])


def _create_acls(request: CreateAclsRequest, context: RequestContext) -> Steps[CreateAclsResponse]:
    """SECURITY_DISABLED for each."""
    results: list[AclCreationResult] = []
    for _ in request.creations:
        yield
        results.append(AclCreationResult(error_code=ErrorCode.SECURITY_DISABLED, error_message=_TEXT))
    return CreateAclsResponse(results=results)


def _delete_acls(request: DeleteAclsRequest, context: RequestContext) -> Steps[DeleteAclsResponse]:
    """SECURITY_DISABLED for each."""
    results: list[DeleteAclsFilterResult] = []
    for _ in request.filters:
        yield
        results.append(
            DeleteAclsFilterResult(
                error_code=ErrorCode.SECURITY_DISABLED, error_message=_TEXT, matching_acls=[]
            )
        )
    return DeleteAclsResponse(filter_results=results)


def _each_creation(request: CreateAclsRequest, _version: int, error_code: int) -> CreateAclsResponse:
    return CreateAclsResponse(results=[AclCreationResult(error_code=error_code) for _ in request.creations])


def _each_filter(request: DeleteAclsRequest, _version: int, error_code: int) -> DeleteAclsResponse:
    results = [DeleteAclsFilterResult(error_code=error_code, matching_acls=[]) for _ in request.filters]
    return DeleteAclsResponse(filter_results=results)


create_acls_nowait: Final = first_portion(_create_acls)
delete_acls_nowait: Final = first_portion(_delete_acls)

_NOTE: Final = "SECURITY_DISABLED: there is no authorizer"

APIS: Final = (
    Api(
        key=ApiKey.DESCRIBE_ACLS,
        needs=(the_cluster(Operation.DESCRIBE),),
        nowait=describe_acls_nowait,
        failure=one_code(DescribeAclsResponse),
        note=_NOTE,
    ),
    Api(
        key=ApiKey.CREATE_ACLS,
        needs=(the_cluster(Operation.ALTER),),
        nowait=create_acls_nowait,
        handler=other_portions,
        failure=_each_creation,
        note=_NOTE,
    ),
    Api(
        key=ApiKey.DELETE_ACLS,
        needs=(the_cluster(Operation.ALTER),),
        nowait=delete_acls_nowait,
        handler=other_portions,
        failure=_each_filter,
        note=_NOTE,
    ),
)
