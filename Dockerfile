# A broker in an image: docker build -t penstock .   See docs/containers.md
# the full image has the compiler that the native files need; what it builds runs on the slim one
FROM python:3.13 AS build
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir build && PENSTOCK_NATIVE=require python -m build --wheel --outdir /wheels .

FROM python:3.13-slim
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/penstock-*.whl)[s3]" \
    && rm -r /wheels \
    && useradd --uid 10001 --no-create-home penstock \
    && install --directory --owner=penstock --mode=0700 /data
USER penstock
ENV PENSTOCK__BROKER__DATA_DIR=/data \
    PENSTOCK__LISTENER__BIND=0.0.0.0:9092
VOLUME /data
EXPOSE 9092
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["penstock", "topic", "list"]
ENTRYPOINT ["penstock"]
CMD ["serve"]
