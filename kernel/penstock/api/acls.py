"""DescribeAcls, CreateAcls, DeleteAcls: there is no authorizer, and SECURITY_DISABLED says so.

UIs ask for ACLs and take this answer for an empty list; without the API they show an error page.
"""

from __future__ import annotations

__all__ = ("create_acls_nowait", "delete_acls_nowait", "describe_acls_nowait")

from typing import Final

from penstock.api.context import RequestContext
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.create_acls import AclCreationResult, CreateAclsRequest, CreateAclsResponse
from penstock.wire.messages.delete_acls import DeleteAclsFilterResult, DeleteAclsRequest, DeleteAclsResponse
from penstock.wire.messages.describe_acls import DescribeAclsRequest, DescribeAclsResponse

_TEXT: Final = "this broker has no authorizer"


def describe_acls_nowait(request: DescribeAclsRequest, context: RequestContext) -> DescribeAclsResponse:
    """SECURITY_DISABLED."""
    return DescribeAclsResponse(error_code=ErrorCode.SECURITY_DISABLED, error_message=_TEXT, resources=[])


def create_acls_nowait(request: CreateAclsRequest, context: RequestContext) -> CreateAclsResponse:
    """SECURITY_DISABLED for each."""
    return CreateAclsResponse(
        results=[
            AclCreationResult(error_code=ErrorCode.SECURITY_DISABLED, error_message=_TEXT)
            for _ in request.creations
        ]
    )


def delete_acls_nowait(request: DeleteAclsRequest, context: RequestContext) -> DeleteAclsResponse:
    """SECURITY_DISABLED for each."""
    return DeleteAclsResponse(
        filter_results=[
            DeleteAclsFilterResult(
                error_code=ErrorCode.SECURITY_DISABLED, error_message=_TEXT, matching_acls=[]
            )
            for _ in request.filters
        ]
    )
