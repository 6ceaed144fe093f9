# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is used by the scripts that source it
# Sourced by offline-setup.sh, bundle.sh and doctor.sh: Docker and this project's compose files, seen from a host that has nothing
# but bash and docker.
#
# A check leaves what it saw in $detail, and when it returns 1, what to do about it in $mend.

readonly CLUSTER_FILE=docker-compose.gpu-cluster.yml
# Older engines do not know a network on which the machine itself has no address (gateway_mode_ipv4: isolated); older
# Compose does not know `!reset`, which doctor.sh uses.
readonly MIN_ENGINE=28.0 MIN_COMPOSE=2.24.4
# What the images take, unpacked: vLLM's CUDA image is the largest by far. And what is kept free for logs and layers.
readonly IMAGES_GB=35 SPARE_GB=5
# The largest model of models.yaml has 15 GB; all of them have 19. Each lies in the store and in the services' cache.
readonly MODELS_GB=40
# How long minio and registry may take until they are healthy.
readonly START_WAIT_S=300

# The compose file of the air-gapped cluster, with the site's override if it has one; and that of the machine with
# internet, or whatever COMPOSE_FILE names. Arrays, so that a command in the background is docker itself.
readonly CLUSTER=(docker compose -f "$CLUSTER_FILE" ${CLUSTER_OVERRIDE:+-f "$CLUSTER_OVERRIDE"})
readonly ONLINE=(docker compose)
cluster() { "${CLUSTER[@]}" "$@"; }
online() { "${ONLINE[@]}" "$@"; }

# version_at_least HAVE LEAST
version_at_least() {
  local have least i
  IFS=.+- read -r -a have <<<"${1#v}"
  IFS=. read -r -a least <<<"$2"
  for i in 0 1 2; do
    local h=${have[i]:-0} l=${least[i]:-0}
    [[ $h =~ ^[0-9]+$ ]] || h=0
    ((10#$h > 10#$l)) && return 0
    ((10#$h < 10#$l)) && return 1
  done
  return 0
}

check_docker() {
  local said version
  if ! command -v docker >/dev/null 2>&1; then
    detail='the program docker is not installed'
    mend='Install Docker Engine and its Compose plugin: https://docs.docker.com/engine/install/'
    return 1
  fi
  if ! said=$(docker version --format '{{.Server.Version}}' 2>&1); then
    detail=$(one_line "$said")
    case $said in
      *[Pp]ermission\ denied*) mend="This user may not talk to Docker: sudo usermod -aG docker ${USER:-\$USER}, then log in again." ;;
      *) mend='The Docker daemon does not answer: sudo systemctl start docker (or start Docker Desktop).' ;;
    esac
    return 1
  fi
  version=${said##*$'\n'}
  detail="engine $version"
  if ! version_at_least "$version" "$MIN_ENGINE"; then
    detail+=" is older than $MIN_ENGINE"
    mend='Install a newer Docker Engine: https://docs.docker.com/engine/install/'
    return 1
  fi
}

check_compose() {
  local version
  if ! version=$(docker compose version --short 2>/dev/null); then
    detail='docker has no Compose plugin'
    mend='Install the package docker-compose-plugin: https://docs.docker.com/compose/install/linux/'
    return 1
  fi
  detail="Compose $version"
  if ! version_at_least "$version" "$MIN_COMPOSE"; then
    detail+=" is older than $MIN_COMPOSE"
    mend='Install a newer docker-compose-plugin: https://docs.docker.com/compose/install/linux/'
    return 1
  fi
}

# The free bytes where Docker keeps images and volumes; nothing where this shell cannot see that folder.
free_bytes() {
  local root
  root=$(docker info --format '{{.DockerRootDir}}' 2>/dev/null) || return 1
  LC_ALL=C df -Pk "$root" 2>/dev/null | LC_ALL=C awk 'NR == 2 { printf "%.0f\n", $4 * 1024 }'
}

human() { # bytes, in GB with one digit
  printf '%d.%d GB' $(($1 / 1000000000)) $(($1 % 1000000000 / 100000000))
}

# $1 the bytes that are needed, $2 what for
check_room() {
  local free
  free=$(free_bytes) || free=''
  if [[ -z $free ]]; then
    detail="the room at Docker's folder cannot be seen from here; $(human "$1") are needed $2"
    return 0
  fi
  detail="$(human "$free") free at Docker's folder, $(human "$1") needed $2"
  if ((free < $1)); then
    mend="Free some room (docker image prune, docker builder prune), or move Docker to a larger disk (data-root in daemon.json)."
    return 1
  fi
}

# The driver, and what gives containers the GPUs. Sets gpus to the lines of `nvidia-smi -L`.
check_nvidia() {
  gpus=''
  if ! command -v nvidia-smi >/dev/null 2>&1; then
    detail='there is no nvidia-smi on this machine'
    mend='Install the NVIDIA driver: https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/'
    return 1
  fi
  if ! gpus=$(nvidia-smi -L 2>&1); then
    detail="nvidia-smi fails: $(one_line "$gpus")"
    mend='Reload or reinstall the NVIDIA driver; after an update of the kernel or driver, reboot.'
    gpus=''
    return 1
  fi
  detail="$(grep -c '^GPU ' <<<"$gpus" || true) GPUs"
  if ! has_toolkit; then
    detail+=', but Docker cannot give them to containers'
    mend='Install nvidia-container-toolkit, then: sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker'
    return 1
  fi
}

# Either the engine has NVIDIA's runtime or hook, or it finds NVIDIA's device descriptions (CDI).
has_toolkit() {
  local known folder
  known=$(docker info --format '{{range $name, $_ := .Runtimes}}{{$name}} {{end}}' 2>/dev/null) || known=''
  [[ " $known " != *" nvidia "* ]] || return 0
  ! command -v nvidia-container-runtime-hook >/dev/null 2>&1 || return 0
  known=$(docker info --format '{{range .CDISpecDirs}}{{.}} {{end}}' 2>/dev/null) || known=''
  for folder in $known; do
    ! compgen -G "$folder/nvidia*" >/dev/null || return 0
  done
  return 1
}

# up_healthy COMMAND...: minio and registry up and healthy, by that way to say `docker compose`. Compose gives up at once
# on a container that is unhealthy from before, such as a registry whose store just came back: so it is asked again.
up_healthy() {
  local try
  for try in 1 2 3 4 5 6; do
    "$@" up --detach --wait --wait-timeout "$START_WAIT_S" minio registry && return
    ((try == 6)) || sleep 5
  done
  return 1
}

# plan cluster|online: what that compose file comes to, as kit.tools.compose_plan tells it, by the registry's image.
plan() {
  local image
  image=$(registry_image) && "$1" config --format json | docker run --rm -i --network none --entrypoint python "$image" -m kit.tools.compose_plan
}

# The registry's image as the cluster file names it. Compose writes its canonical form, in which this is enough.
registry_image() {
  local file
  file=$(cluster config) && awk '/^  [^ ]/ { service = $1 } service == "registry:" && $1 == "image:" { print $2; exit }' <<<"$file"
}

# planned FIELD LINES: the lines of a plan that begin with that word, without it.
planned() {
  sed -n "s/^$1"$'\t'"//p" <<<"$2"
}

one_line() {
  tr -s '\n\t ' '   ' <<<"$*" | sed 's/ *$//'
}
