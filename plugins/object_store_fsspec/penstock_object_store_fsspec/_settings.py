"""Settings of the plugin, and what each kind of URL claims."""

from __future__ import annotations

__all__ = ("LOCAL_CAPABILITIES", "MEMORY_CAPABILITIES", "Settings")

from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from penstock.spi.object_store import ObjectStoreCapabilities
from penstock.spi.settings import Duration, Size
from penstock.spi.settings import Settings as BaseSettings
from penstock_object_store_fsspec._options import check_options, find_filesystem, protocol_of

LOCAL_CAPABILITIES = ObjectStoreCapabilities(
    put_if_absent=True,
    compare_and_swap=False,
    multipart=True,
    durable=True,
    durability_domain="host",
    direct_io=True,
    small_parts=True,
)
MEMORY_CAPABILITIES = ObjectStoreCapabilities(
    put_if_absent=True,
    compare_and_swap=True,
    append=True,
    multipart=True,
    durable=False,
    durability_domain="process",
)


class Settings(BaseSettings):
    """Where the objects are, and how patiently to ask for them."""

    model_config = ConfigDict(hide_input_in_errors=True)  # options hold secrets, a url may

    url: str = Field(
        default="file://objects",
        description="where objects are kept: file://DIR (a relative DIR starts at the data directory), "
        "memory://NAME, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX",
    )
    # repr=False keeps secrets out of logs; json_schema_extra tells whoever prints settings to mask it.
    options: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,
        description="keyword arguments of the fsspec file system (endpoint_url, key, secret, ...)",
        json_schema_extra={"secret": True},
    )
    client: Literal["auto", "fsspec", "obstore"] = Field(
        default="auto",
        description="puts and ranged reads of s3:// are made by obstore, with little of the event loop's time, or by "
        "s3fs; auto: by obstore if it is installed and understands the options",
    )
    multipart_part_bytes: Size = Field(
        default=8 * 2**20,
        ge=5 * 2**20,
        description="parts of an upload in parts are gathered to this size (remote stores; 5MiB or more)",
    )
    request_timeout_ms: Duration = Field(
        default=30_000,
        gt=0,
        description="one attempt of one request to a remote store takes at most this long",
    )
    retry_budget_ms: Duration = Field(
        default=20_000,
        ge=0,
        description="no new attempt of a request to a remote store starts after this long",
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        try:
            find_filesystem(protocol_of(url))
        except ImportError as error:
            raise ValueError(str(error)) from error
        return url

    @field_validator("options")
    @classmethod
    def _check_options(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        url = info.data.get("url")
        if url is not None:  # else the url is wrong, which is said
            check_options(protocol_of(url), options)
        return options
