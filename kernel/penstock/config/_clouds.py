"""Templates of `penstock config init --cloud NAME`: the keys that differ from the default, and why."""

from __future__ import annotations

__all__ = ("CLOUDS", "Cloud", "is_placeholder")

import re
from dataclasses import dataclass
from typing import Final

#: What stands in the templates for a name that only their reader knows.
_PLACEHOLDER: Final = re.compile(
    r"(?<![\w-])(your-bucket(--[\w-]+)?|your-container|your-account-id|your-project|youraccount)(?![\w-])"
)


def is_placeholder(value: str) -> bool:
    """Whether a name in ``value`` is still the one of a template."""
    return _PLACEHOLDER.search(value) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """A place to run in.

    ``store``, ``wal`` and ``lake`` are the lines of ``[object_store]``, ``[wal]`` and ``[lake_compactor]``, with
    comments.
    """

    #: Ends the sentence "Configuration of a Penstock broker that ...".
    keeps: str
    store: str = ""
    wal: str = ""
    lake: str = ""


_AWS_CREDENTIALS: Final = """\
# Credentials come from where AWS's own tools take them: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile
# (AWS_PROFILE), or the role of the machine, pod or task. They don't belong into this file.
"""
_PATIENCE: Final = """\
# Check address, credentials and rights with: penstock config check --connect -c FILE
"""

_WAL: Final = """\
# It is in the bucket, too: what is acknowledged outlives the machine and its disks. That takes the time of one put,
# and costs one for each acknowledgement, or for each 50 ms (linger), whichever is less; nothing while idle.
plugin = "wal_s3"
# On this machine's disk it is acknowledged at once, and lost with that disk until it is uploaded, after a minute:
# plugin = "wal_block"
# Or on the disk and in the bucket, so that either may fail; acknowledged when both have it:
# plugin = "wal_s3express_replicated"
"""


def _regional(disk: str, path: str) -> str:
    """``_WAL`` where there is a disk that outlives its machine."""
    return f"""{_WAL}# Or on {disk},
# attached to every machine that may take the log over ({{node_id}} becomes the node's id). What is acknowledged
# outlives the machine then, and takes a millisecond. Once: penstock wal format -c FILE
# plugin = "wal_block"
# path = "{path}"
# shared = true
# capacity = "16GiB"
# reservations = "auto"
"""


def _lake(bucket: str, extra: str, *properties: str) -> str:
    """Tables in a bucket, all of it commented out; ``properties`` are those of pyiceberg for the store."""
    catalog = ", ".join(('type = "sql"', 'uri = "postgresql+psycopg://you@db.example.com/lake"', *properties))
    return f"""\
# Tables in the bucket, for DuckDB, Spark, Trino and others; docs/lake-catalogs.md says more. Credentials are found as
# above. pip install 'penstock[iceberg,postgres,{extra}]'
# plugin = "iceberg_compactor"
# warehouse = "{bucket}/lake"
# The catalog knows which tables there are: PostgreSQL, or REST, Glue and others that pyiceberg can. Without type and
# uri it is a file in the data directory, and goes with that.
# catalog = {{ {catalog} }}
"""


#: A list of tables, so that the section's other keys may follow.
_EXPRESS_WAL: Final = """\
# In two places at once: a directory bucket (S3 Express One Zone), which answers in some milliseconds, and this
# machine's disk. Records are acknowledged when both have them, and one of the two may fail: what it misses, it is
# given later. The directory bucket must be there, in the zone of the broker. Right: s3express:CreateSession on it;
# botocore makes the sessions. Without object_store, the broker's bucket takes its place. In that bucket alone, at its
# latency, and without a disk:
# plugin = "wal_s3"
plugin = "wal_s3express_replicated"
replicas = [
  { plugin = "wal_s3", prefix = "wal-zonal/", linger = "5ms", \
object_store = { url = "s3://your-bucket--euc1-az1--x-s3/penstock", \
options.client_kwargs.region_name = "eu-central-1" } },
  { plugin = "wal_block", path = "wal/replica-{node}.wal" },
]
"""

CLOUDS: Final[dict[str, Cloud]] = {
    "local": Cloud(keeps="keeps everything on this machine"),
    "aws": Cloud(
        keeps="keeps its objects in Amazon S3",
        store=f"""\
# The bucket must be there, in the region where the broker runs. pip install 'penstock[s3]'
url = "s3://your-bucket/penstock"
{_AWS_CREDENTIALS}# Rights on the bucket: s3:ListBucket; on its objects: s3:GetObject, s3:PutObject, s3:DeleteObject,
# s3:AbortMultipartUpload. docs/object-stores.md has the policy.
options.client_kwargs.region_name = "eu-central-1"
{_PATIENCE}""",
        wal=_WAL,
        lake=_lake("s3://your-bucket", "s3", 's3.region = "eu-central-1"'),
    ),
    "aws-express": Cloud(
        keeps="keeps its objects in Amazon S3, and its log in a zonal bucket and on its disk",
        store=f"""\
# The bucket must be there, in the region where the broker runs. pip install 'penstock[s3]'
url = "s3://your-bucket/penstock"
{_AWS_CREDENTIALS}# Rights on the bucket: s3:ListBucket; on its objects: s3:GetObject, s3:PutObject, s3:DeleteObject,
# s3:AbortMultipartUpload. docs/object-stores.md has the policy.
options.client_kwargs.region_name = "eu-central-1"
{_PATIENCE}""",
        wal=_EXPRESS_WAL,
        lake=_lake("s3://your-bucket", "s3", 's3.region = "eu-central-1"'),
    ),
    "minio": Cloud(
        keeps="keeps its objects in MinIO, or another store that speaks S3",
        store=f"""\
# The bucket must be there (mc mb local/penstock). pip install 'penstock[s3]'
url = "s3://penstock/broker"
# Credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment are MinIO's access key and secret key.
# The address is that of the S3 API (port 9000 by default), not that of the console.
options.endpoint_url = "http://127.0.0.1:9000"
options.client_kwargs.region_name = "us-east-1"
{_PATIENCE}""",
        wal=_WAL,
        lake=_lake("s3://penstock", "s3", 's3.endpoint = "http://127.0.0.1:9000"', 's3.region = "us-east-1"'),
    ),
    "r2": Cloud(
        keeps="keeps its objects in Cloudflare R2",
        store=f"""\
# The bucket must be there. pip install 'penstock[s3]'
url = "s3://your-bucket/penstock"
# Credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment are those of an R2 API token with
# "Object Read & Write" on this bucket. The region of R2 is always auto; put your account id into the address.
options.endpoint_url = "https://your-account-id.r2.cloudflarestorage.com"
options.client_kwargs.region_name = "auto"
{_PATIENCE}""",
        wal=_WAL,
        lake=_lake(
            "s3://your-bucket",
            "s3",
            's3.endpoint = "https://your-account-id.r2.cloudflarestorage.com"',
            's3.region = "auto"',
        ),
    ),
    "gcp": Cloud(
        keeps="keeps its objects in Google Cloud Storage",
        store=f"""\
# The bucket must be there, in the region where the broker runs. pip install 'penstock[gcs]'
url = "gs://your-bucket/penstock"
# Credentials come from where Google's own tools take them: GOOGLE_APPLICATION_CREDENTIALS, gcloud auth
# application-default login, or the service account of the machine or pod. Role on the bucket: Storage Object User.
options.project = "your-project"
{_PATIENCE}""",
        wal=_regional(
            "a regional persistent disk in multi-writer mode, or a Hyperdisk Balanced High Availability volume",
            "/dev/disk/by-id/google-penstock-wal-{node_id}",
        ),
        lake=_lake("gs://your-bucket", "gcs", 'gcs.project-id = "your-project"'),
    ),
    "azure": Cloud(
        keeps="keeps its objects in Azure Blob Storage",
        store=f"""\
# The container must be there. pip install 'penstock[azure]'
url = "az://your-container/penstock"
# Credentials: AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_CONNECTION_STRING in the environment, or, with anon = false,
# the usual chain (managed identity, az login). Role on the container: Storage Blob Data Contributor.
options.account_name = "youraccount"
options.anon = false
{_PATIENCE}""",
        wal=_regional(
            "a shared disk (maxShares of 2 or more) that is zone-redundant (Premium_ZRS)",
            "/dev/disk/azure/data/by-lun/{node_id}",
        ),
    ),
    "alibaba": Cloud(
        keeps="keeps its objects in Alibaba Cloud OSS",
        store=f"""\
# The bucket must be there, in the region where the broker runs. pip install 'penstock[s3]'
# OSS is spoken to as S3. Whether your bucket has put-if-absent, which Penstock needs, tells first:
# penstock object-store probe URL -c FILE
url = "s3://your-bucket/penstock"
# Credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment are those of a RAM user.
options.endpoint_url = "https://s3.oss-cn-hangzhou.aliyuncs.com"
options.client_kwargs.region_name = "cn-hangzhou"
options.config_kwargs.s3.addressing_style = "virtual"
{_PATIENCE}""",
        wal=_regional(
            "a regional ESSD with multi-attach",
            "/dev/disk/by-id/nvme-penstock-wal-{node_id}",
        ),
        lake=_lake(
            "s3://your-bucket",
            "s3",
            's3.endpoint = "https://s3.oss-cn-hangzhou.aliyuncs.com"',
            's3.region = "cn-hangzhou"',
            "s3.force-virtual-addressing = true",
        ),
    ),
}
