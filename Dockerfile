# docker build -t tandem --build-arg VERSION="$(git describe --tags --always)" .
#
# The last stage, what is built by default, holds the binary and an empty /data, and nothing else: no shell, no
# C library, no certificates (the binary has Mozilla's roots in it). cmd/tandem/image_test.go does
# the same without Docker: it runs the two commands of the stage `build` and starts the result in an empty chroot.

FROM golang:1.26 AS source
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download

# Hot reload with a debugger on port 2345, for docker-compose.yml; the source is mounted on /src.
FROM source AS dev
RUN go install github.com/air-verse/air@v1.67.4
RUN go install github.com/go-delve/delve/cmd/dlv@v1.27.2
ENV DEBUG=true TANDEM_LISTEN=:8000 GOCACHE=/go/cache
EXPOSE 8000 2345
CMD ["air", \
  "--build.cmd", "go build -buildvcs=false -gcflags 'all=-N -l' -o ./tmp/tandem ./cmd/tandem", \
  "--build.full_bin", "dlv exec ./tmp/tandem --headless --listen :2345 --api-version 2 --accept-multiclient --continue -- serve"]

FROM source AS build
COPY . .
ARG VERSION
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w ${VERSION:+-X tandem.Version=$VERSION}" -o /image/tandem ./cmd/tandem
# There is no chown in the last stage, so the directory is made here and copied with its owner.
RUN mkdir -p /image/data

FROM scratch
COPY --from=build /image/tandem /tandem
COPY --from=build --chown=65532:65532 /image/data /data
USER 65532:65532
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["/tandem", "health"]
ENTRYPOINT ["/tandem"]
CMD ["serve", "--mode", "production"]
